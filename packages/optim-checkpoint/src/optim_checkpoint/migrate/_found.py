"""What a checkpoint of another tool holds, in the words of this package, and the reports."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from optim_checkpoint._errors import UnsupportedStateError, shown
from optim_checkpoint._names import label_of
from optim_checkpoint._place import Place
from optim_checkpoint._typed import Leaf, encode_exact


@dataclass(frozen=True)
class Report:
    """What came along and what did not.

    Attributes:
        path: What was written.
        step: The training step.
        format: The other format.
        holds: What was written, one line each.
        left_out: What the source has and the result has not, one line each with the reason.
        notes: What was assumed or changed on the way, one line each.
    """

    path: Place
    step: int
    format: str
    holds: tuple[str, ...]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass
class Found:
    """A training state as plain state dicts; several of a kind have names, one alone has "".

    Attributes:
        format: Where it is from.
        step: The training step, where the source says it.
        model: The entries of the model.
        optimizers: The state dicts of torch optimizers.
        schedulers: The state dicts of schedulers.
        scalers: The state dicts of gradient scalers.
        rng: The generators as `generators` returns them, or None.
        extra: Everything else.
        kinds: The classes of the optimizers, where the source says them.
        names: The names of the optimizers' parameters by group, where the source says them.
        ordered: Whether the entries of the model are in the order of its state dict.
        left_out: See `Report`.
        notes: See `Report`.
    """

    format: str
    step: int | None = None
    model: dict[str, Any] = field(default_factory=dict)
    optimizers: dict[str, dict[str, Any]] = field(default_factory=dict)
    schedulers: dict[str, Any] = field(default_factory=dict)
    scalers: dict[str, Any] = field(default_factory=dict)
    rng: dict[str, Any] | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    names: dict[str, list[list[str]]] = field(default_factory=dict)
    ordered: bool = True
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def drop(self, wanted: Collection[str]) -> None:
        """Leave parts out that the caller does not want.

        Raises:
            ValueError: For a part that is not there.
        """
        parts: dict[str, Any] = {
            "model": self.model,
            "optimizer": self.optimizers,
            "scheduler": self.schedulers,
            "scaler": self.scalers,
            "rng": self.rng,
        }
        for name in wanted:
            if not parts.get(name) and name not in self.extra:
                there = [*(part for part, value in parts.items() if value), *self.extra]
                raise ValueError(
                    f"nothing to leave out is called {name!r}; there is {listed(there)}"
                )
            if name == "rng":
                self.rng = None
            elif parts.get(name):
                parts[name].clear()
            else:
                del self.extra[name]
            self.left_out.append(f"{name}: was to be left out")

    def holds(self) -> list[str]:
        """Describe it, one line for each part."""
        lines: list[str] = []
        if self.model:
            lines.append(f"model: {len(self.model)} entries")
        for name, state in self.optimizers.items():
            groups = state["param_groups"]
            count = sum(len(group["params"]) for group in groups)
            lines.append(
                f"{named('optimizer', name)}: state of {len(state['state'])} of {count} parameters "
                f"in {len(groups)} groups"
            )
        lines += [named("scheduler", name) for name in self.schedulers]
        lines += [named("scaler", name) for name in self.scalers]
        if self.rng is not None:
            lines.append(f"generators: {', '.join(self.rng)}")
        if self.extra:
            lines.append(f"extra: {listed(self.extra)}")
        return lines


def named(what: str, name: str) -> str:
    """Return what one of several is called, in the words of `restore`.

    >>> named("optimizer", ""), named("optimizer", "critic")
    ('optimizer', 'optimizer/critic')
    """
    return f"{what}/{name}" if name else what


def by_place(values: list[Any]) -> dict[str, Any]:
    """Name what comes in a list: one alone has no name, several have their number.

    >>> by_place(["a"]), by_place(["a", "b"])
    ({'': 'a'}, {'0': 'a', '1': 'b'})
    """
    return {"": values[0]} if len(values) == 1 else {str(i): v for i, v in enumerate(values)}


def listed(names: Collection[Any], most: int = 8) -> str:
    """Return a few names for people.

    >>> listed(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    shown_names = [shown(name).strip("'") for name in list(names)[:most]]
    more = len(names) - len(shown_names)
    return ", ".join(shown_names) + (f" and {more} more" if more else "")


def storable(values: Mapping[Any, Any], leaf: Leaf, left_out: list[str], where: str = "") -> Any:
    """Return what of nested dicts can be stored; the rest is listed with its reason.

    Args:
        values: The values.
        leaf: What `encode_exact` asks about tensors and arrays.
        left_out: Receives a line for each value that cannot be stored.
        where: What the names start with.
    """
    kept: dict[Any, Any] = {}
    for key, value in values.items():
        path = f"{where}[{shown(key)}]" if where else str(key)
        try:
            label_of(path)
            encode_exact({key: value}, path, leaf, set())
        except UnsupportedStateError as error:
            if type(value) is dict and type(key) is str:
                kept[key] = storable(value, leaf, left_out, path)
            else:
                left_out.append(f"extra {' '.join(str(error).split())}")
        else:
            kept[key] = value
    return kept
