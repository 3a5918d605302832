# pyright: strict
"""What of a checkpoint is loaded under which name, and the report of it.

Nothing is silent: what is not loaded is listed, and what was asked for and is not there is an
error, also a pattern or a new name that stands for nothing.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import cast as typed_as

from optim_checkpoint._casts import Casting
from optim_checkpoint._errors import shown

Rename = Mapping[str, str] | Callable[[str], str]
Only = str | Sequence[str]


@dataclass(frozen=True)
class Report:
    """What a restore did with the names of a model, an optimizer or a tree.

    Attributes:
        loaded: The live names that got what was saved.
        missing: The live names of which the checkpoint has nothing; they keep what they had.
        unexpected: What only the checkpoint has, under its own names.
        left_out: What `only` left out, under its live name.
        renamed: The live name of what was saved under another one, by that.
        cast: Saved and live dtype of what was converted, by live name.
    """

    loaded: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict[str, str])
    cast: Mapping[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])


@dataclass
class Fit:
    """How the names of a checkpoint and live ones go together.

    Attributes:
        there: The saved name of each live one that is loaded.
        missing: See `Report`.
        unexpected: See `Report`.
        left_out: See `Report`.
        renamed: See `Report`.
        differences: Why they do not go together.
        cast: Receives what is converted.
    """

    there: dict[str, str] = field(default_factory=dict[str, str])
    missing: list[str] = field(default_factory=list[str])
    unexpected: list[str] = field(default_factory=list[str])
    left_out: list[str] = field(default_factory=list[str])
    renamed: dict[str, str] = field(default_factory=dict[str, str])
    differences: list[str] = field(default_factory=list[str])
    cast: dict[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])

    def report(self) -> Report:
        """Return the report, once everything is known."""
        names = (self.there, self.missing, self.unexpected, self.left_out)
        loaded, missing, unexpected, left_out = (tuple(sorted(each)) for each in names)
        return Report(loaded, missing, unexpected, left_out, dict(self.renamed), dict(self.cast))


class Selection:
    """What a restore was asked to load; used for one generation.

    Args:
        strict: Whether both sides must have the same names.
        rename: Live names by saved ones, where a name stands for all that it is a dotted prefix
            of, or a function from one to the other.
        only: Patterns of live names, as the shell has them; those after "!" leave out.
        casting: What may be converted.

    Raises:
        TypeError: If an argument is of another kind.
    """

    def __init__(
        self,
        *,
        strict: bool = True,
        rename: Rename | None = None,
        only: Only | None = None,
        casting: Casting | None = None,
    ) -> None:
        self.strict = strict
        self.casting = casting or Casting()
        self._new_names = _new_names(rename)
        self._function = typed_as("Callable[[str], object] | None", rename)
        if isinstance(rename, Mapping):
            self._function = None
        self._only = _checked_only(only)
        self._used: set[tuple[str, str]] = set()

    @property
    def partial(self) -> bool:
        """Say whether names may be only on one side."""
        return not self.strict or bool(self._only)

    @property
    def plain(self) -> bool:
        """Say whether everything is loaded as it is."""
        return not (
            self.partial or self._new_names or self._function or self.casting.rule is not None
        )

    def translated(self) -> "Selection":
        """Return the selection for names that are live ones already, and selected."""
        return Selection(strict=not self.partial, casting=self.casting)

    def name_of(self, saved: str) -> str:
        """Return the live name of what was saved under a name.

        Raises:
            TypeError: If `rename` returns no text.
        """
        if self._function is not None:
            name = self._function(saved)
            if not isinstance(name, str):
                raise TypeError(f"rename made {shown(name)} of {shown(saved)}; it must return text")
            return name
        end = len(saved)
        while end > 0 and self._new_names:
            start = saved[:end]
            if start in self._new_names:
                self._used.add(("rename", start))
                new = self._new_names[start]
                return (new + saved[end:]) if new else saved[end + 1 :]
            end = saved.rfind(".", 0, end)
        return saved

    def wants(self, name: str) -> bool:
        """Say whether a live name is to be loaded."""
        matching = [p for p in self._only if fnmatchcase(name, p.removeprefix("!"))]
        self._used.update(("only", pattern) for pattern in matching)
        if any(pattern.startswith("!") for pattern in matching):
            return False
        return bool(matching) or all(pattern.startswith("!") for pattern in self._only)

    def fit(
        self,
        what: str,
        saved: Iterable[str],
        live: Iterable[str],
        name_of: Callable[[str], str] | None = None,
        owner_of: Callable[[str], str | None] = lambda name: name,
    ) -> Fit:
        """Find the live name of each saved one.

        Args:
            what: What the names are of, for differences.
            saved: The saved names.
            live: The live names.
            name_of: What to take for the method of that name.
            owner_of: Which name `only` decides about a live one by; None is loaded whatever it
                says.
        """
        names = {each: (name_of or self.name_of)(each) for each in saved}
        here = dict.fromkeys(live)
        owners = {name: owner_of(name) for name in {*names.values(), *here}}
        wanted = {name for name, owner in owners.items() if owner is None or self.wants(owner)}
        there: dict[str, str] = {}
        twice: list[str] = []
        for old, new in names.items():
            first = there.setdefault(new, old)
            if first != old:
                twice.append(f"{what} {first} and {old} would both be {new}: rename one of them")
        return Fit(
            {new: old for new, old in there.items() if new in here and new in wanted},
            [name for name in here if name not in there and name in wanted],
            [old for new, old in there.items() if new not in here and new in wanted],
            [name for name in dict.fromkeys([*here, *there]) if name not in wanted],
            {
                new: old
                for new, old in there.items()
                if new in here and new in wanted and new != old
            },
            twice,
        )

    def unused(self) -> list[str]:
        """List what stands for nothing in all that was fitted."""
        return [
            f"rename has {shown(name)}, and nothing in the checkpoint has this name or starts "
            "with it"
            for name in self._new_names
            if ("rename", name) not in self._used
        ] + [
            f"only has {shown(pattern)}, which no name matches"
            for pattern in self._only
            if ("only", pattern) not in self._used
        ]


def _new_names(rename: object) -> dict[str, str]:
    if rename is None or callable(rename):
        return {}
    if not isinstance(rename, Mapping):
        raise TypeError(
            f"rename is a {type(rename).__name__}; it must be a mapping of saved names to live "
            "ones, or a function"
        )
    mapping = typed_as("Mapping[object, object]", rename)
    for name, new in mapping.items():
        if not isinstance(name, str) or not isinstance(new, str) or not name:
            raise TypeError(
                f"rename maps {shown(name)} to {shown(new)}; both must be text, and the first not "
                "empty"
            )
    return {str(name): str(new) for name, new in mapping.items()}


def _checked_only(only: object) -> tuple[str, ...]:
    patterns = (only,) if isinstance(only, str) else only
    if patterns is None:
        return ()
    if not isinstance(patterns, list | tuple | set | frozenset) or not patterns:
        raise TypeError(f"only is {shown(only)}; it must be a pattern or a list of patterns")
    listed = typed_as("Sequence[object]", patterns)
    for pattern in listed:
        if not isinstance(pattern, str):
            raise TypeError(f"only has the pattern {shown(pattern)}; a pattern is text")
    return tuple(map(str, listed))
