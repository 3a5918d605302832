# pyright: strict
"""Which generations stay: the newest, every n-th, the best by a metric, and those that are pinned.

Only sound ones count. Nor do those that were abandoned, which are newer than one that was saved
after them: training went back and left them. They stay until it has passed them, since retention
removes nothing that is newer than what it saves.
"""

import contextlib
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import SupportsFloat, cast

from optim_checkpoint._errors import CorruptCheckpointError, shown
from optim_checkpoint._folder import GenerationName, parse_name
from optim_checkpoint._json import as_array, as_object
from optim_checkpoint._typed import decode, encode

RETENTION = "retention"
METRICS = "metrics"
Best = tuple[str, str, int]
Metrics = Mapping[str, SupportsFloat]


@dataclass(frozen=True, slots=True)
class Policy:
    """What a save was told to keep; all of it where `keep` is None."""

    keep: int | None = None
    keep_every: int | None = None
    keep_best: Best | None = None

    @classmethod
    def of(cls, keep: object, keep_every: object = None, keep_best: object = None) -> "Policy":
        """Check the arguments of a save.

        Raises:
            ValueError: If one of them is out of its range, or says nothing without `keep`.
        """
        for name, value in (("keep", keep), ("keep_every", keep_every)):
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(
                    f"{name} is {value!r}; it must be None or an integer of at least 1"
                )
        if keep is None and (keep_every is not None or keep_best is not None):
            raise ValueError(
                "keep_every and keep_best say what stays beside the newest steps: give keep, their "
                "number, too"
            )
        best = None if keep_best is None else _best(keep_best)
        return cls(cast("int | None", keep), cast("int | None", keep_every), best)

    def record(self, abandoned: Iterable[GenerationName]) -> dict[str, object]:
        """Return what the manifest says of it, for whoever asks why a step is there."""
        left = [str(name) for name in abandoned]
        return {
            "keep": self.keep,
            "keep_every": self.keep_every,
            "keep_best": None if self.keep_best is None else list(self.keep_best),
            **({"abandoned": left} if left else {}),
        }


def _best(value: object) -> Best:
    items: Sequence[object] = ()
    if isinstance(value, tuple | list):
        items = cast("Sequence[object]", value)
    if len(items) == 3:
        name, order, count = items
        if isinstance(name, str) and order in ("min", "max") and type(count) is int and count > 0:
            return name, cast("str", order), count
    raise ValueError(
        f"keep_best is {shown(cast('object', value))}; it must be the name of a metric, 'min' or "
        "'max', and how many to keep, as in ('val_loss', 'min', 3)"
    )


def encode_metrics(metrics: Metrics) -> dict[str, object]:
    """Return the metrics of a save as a section of the manifest.

    Raises:
        TypeError: If one is no number, or has no name.
    """
    if not isinstance(metrics, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"metrics is {shown(metrics)}; it must be a mapping of names to numbers")
    section: dict[str, object] = {}
    for name, value in cast("Mapping[object, object]", metrics).items():
        try:
            number = float(cast("SupportsFloat", value))
        except (TypeError, ValueError, RuntimeError, OverflowError):
            number = None
        if not isinstance(name, str) or number is None or isinstance(value, str):
            raise TypeError(
                f"metrics has {shown(name)}: {shown(value)}; it must be a name and a number"
            )
        section[name] = encode(number, f"metrics {shown(name)}")
    return section


@dataclass(frozen=True, slots=True)
class Notes:
    """What the manifest of a generation says for retention.

    Attributes:
        metrics: Its metrics.
        policy: What its save was told to keep.
        abandoned: The generations that were newer when it was saved.
    """

    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    policy: Policy = Policy()
    abandoned: tuple[GenerationName, ...] = ()

    @classmethod
    def of(cls, sections: Mapping[str, object]) -> "Notes":
        """Read them; what is not as it is written says nothing."""
        metrics: dict[str, float] = {}
        for name, typed in (as_object(sections.get(METRICS)) or {}).items():
            with contextlib.suppress(CorruptCheckpointError):
                value = decode(typed, METRICS)
                if isinstance(value, float):
                    metrics[name] = value
        fields = as_object(sections.get(RETENTION)) or {}
        try:
            policy = Policy.of(*(fields.get(key) for key in ("keep", "keep_every", "keep_best")))
        except ValueError:
            policy = Policy()
        names = [parse_name(str(name)) for name in as_array(fields.get("abandoned")) or ()]
        return cls(metrics, policy, tuple(name for name in names if name is not None))


def decide(
    policy: Policy,
    present: Iterable[GenerationName],
    new: GenerationName,
    *,
    sound: Callable[[GenerationName], bool],
    notes: Callable[[GenerationName], Notes],
    pins: Mapping[int, str],
) -> dict[GenerationName, list[str]]:
    """Return which generations stay, and why.

    Args:
        policy: What to keep, beside what is pinned.
        present: What is there.
        new: What was saved last.
        sound: Says whether one counts; asked of few.
        notes: What their manifests say.
        pins: The reasons of the pinned steps.
    """
    stays: dict[GenerationName, list[str]] = {}
    older = sorted((name for name in {*present, new} if name <= new), reverse=True)
    for name in present:
        if name > new:
            stays[name] = [f"abandoned: newer than step {new.step}, which was saved after it"]
        if name.step in pins:
            stays.setdefault(name, []).append(f"pinned: {pins[name.step]}")
    left = _left(older, new, notes)
    by_step: dict[int, list[GenerationName]] = {}
    for name in older:
        if name not in left:
            by_step.setdefault(name.step, []).append(name)
    heads: dict[int, GenerationName | None] = {}

    def head(step: int) -> GenerationName | None:
        """Return the newest sound generation of a step."""
        if step not in heads:
            heads[step] = next((n for n in by_step[step] if n == new or sound(n)), None)
        return heads[step]

    def keep(steps: Iterable[int], count: int | None, why: Callable[[int], str]) -> None:
        found = 0
        for step in steps:
            name = None if found == count else head(step)
            if name is not None:
                stays.setdefault(name, []).append(why(step))
                found += 1

    newest: list[int] = []
    for step, names in by_step.items() if policy.keep is not None else ():
        if len(newest) == policy.keep:
            break
        first = head(step)
        # What cannot be read may be sound, and damage is for people to look at.
        for name in names if first is None else names[: names.index(first)]:
            stays.setdefault(name, []).append("not sound or not readable, newer than what is kept")
        if first is not None:
            newest.append(step)
    keep(newest, policy.keep, lambda step: f"one of the {policy.keep} newest")
    every = policy.keep_every
    if every is not None:
        steps = (step for step in by_step if step % every == 0)
        keep(steps, None, lambda step: f"a multiple of {every}")
    if policy.keep_best is not None:
        metric, order, count = policy.keep_best
        values = {s: notes(names[0]).metrics.get(metric, math.nan) for s, names in by_step.items()}
        sign = 1 if order == "min" else -1
        ranked = [step for step, value in values.items() if math.isfinite(value)]
        ranked.sort(key=lambda step: (sign * values[step], -step))
        keep(ranked, count, lambda s: f"{order} {count} of {metric}: {values[s]:g}")
    return stays


def _left(
    names: Collection[GenerationName], new: GenerationName, notes: Callable[[GenerationName], Notes]
) -> set[GenerationName]:
    """Return those that were abandoned by one that is still there."""
    return {left for name in names if name != new for left in notes(name).abandoned} & {*names}
