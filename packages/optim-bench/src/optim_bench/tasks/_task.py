"""What a task is, in either framework: its declaration, and what every function of it is held to.

A task owns what is trained and how it is judged. The optimizer, its learning rate and schedule, the
seeds and the order of runs are the benchmark's.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, cast

from optim_bench.records import MAX_CURVE_POINTS, OWN_SCHEDULE, SCHEDULES

SPLITS = ("val", "test")
_SPLITS = (SPLITS[:1], SPLITS, (*SPLITS, "train"))
_NOT_IN_NAMES = set('/,:"\n')


class TaskError(ValueError):
    """A task does not do what the interface says; the message names its function and the remedy."""


class Entry(Protocol):
    """A problem as a plan sees it; nothing here needs a framework.

    A `TorchTask` and a `JaxTask` are entries of their own framework; a built-in workload is one of
    both, and makes the task when a run needs it.
    """

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> int | None: ...
    @property
    def frameworks(self) -> tuple[str, ...]: ...
    @property
    def kind(self) -> str: ...
    @property
    def schedule_name(self) -> str: ...
    @property
    def judged(self) -> str: ...
    @property
    def larger_is_better(self) -> bool: ...
    def horizon(self, tier: str) -> int:
        """Return the steps of a run in a tier."""
        ...

    def evaluation_steps(self, steps: int) -> list[int]:
        """Return after which steps a run of `steps` is evaluated."""
        ...

    def facts(self) -> dict[str, Any]:
        """Return what a plan writes down about it."""
        ...

    def written_in(self) -> list[Any]:
        """Return the objects whose source is its source."""
        ...

    def settings(self) -> str:
        """Return what decides its numbers beside its source, as text; empty where nothing does."""
        ...

    def build(self, framework: str, data_dir: Path | None) -> "Task":
        """Return the task to train."""
        ...


@dataclass(frozen=True, eq=False, kw_only=True)
class Task:
    """What both kinds of task declare.

    Args:
        steps: the horizon of a run in optimizer steps.
        judged: the metric of `evaluate` that chooses and judges; it has to be positive.
        larger_is_better: whether a larger value of it is the better one.
        evaluate_every: steps between evaluations, or None for 20 evenly spaced ones.
        schedule: `"cosine"`, `"linear"`, `"warmup"` or `"wsd"`, all with a linear warm-up over 5 %
            of the steps, `"constant"`, or a function from (step, steps) to the factor on the rate.
        splits: what `evaluate` can be asked for: `"val"`, which chooses, `"test"`, which is
            reported, and `"train"`. Without `"test"` the verdict is on validation, and the page
            says so.
        stream: whether the problem changes with time. A run is then judged by the mean over the
            evaluations of its second half, not by its end.
        clip_norm: largest global norm of the gradients, or None.
        accumulate: batches per optimizer step; their gradients are averaged.
        name: what the task is called; by default the name it is found under.
        version: keeps the key of finished runs while you edit the module for reasons that change
            no number; raise it when one changes. None: any edit makes another task.
        title: one line for people.
        metrics: what a run reports, such as `"test_accuracy"`, or None for everything that
            `evaluate` returns.
    """

    framework: ClassVar[str]
    initializer: ClassVar[str]

    steps: int
    judged: str = "loss"
    larger_is_better: bool = False
    evaluate_every: int | None = None
    schedule: str | Callable[[int, int], float] = "cosine"
    splits: tuple[str, ...] = SPLITS
    stream: bool = False
    clip_norm: float | None = None
    accumulate: int = 1
    name: str = ""
    version: int | None = None
    title: str = ""
    metrics: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for field in ("steps", "accumulate", "evaluate_every", "version"):
            value = getattr(self, field)
            if value is None and field in ("evaluate_every", "version"):
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise TaskError(f"{field} is {value!r}; it has to be a whole number, at least 1")
        if not callable(self.schedule) and self.schedule not in SCHEDULES:
            raise TaskError(
                f"schedule is {self.schedule!r}; it has to be one of {', '.join(SCHEDULES)}, or a "
                "function"
            )
        object.__setattr__(self, "splits", tuple(self.splits))
        if self.splits not in _SPLITS:
            raise TaskError(
                f"splits is {self.splits!r}; it has to be one of {', '.join(map(repr, _SPLITS))}"
            )
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise TaskError(f"clip_norm is {self.clip_norm!r}; it has to be positive, or None")
        if strange := sorted(_NOT_IN_NAMES & set(self.name)):
            raise TaskError(
                f"name is {self.name!r}; leave {' '.join(map(repr, strange))} out of it"
            )
        for name, function in self.functions().items():
            if not callable(function):
                raise TaskError(f"{name} is a {type(function).__name__}; it has to be a function")

    def functions(self) -> dict[str, Any]:
        """Return the user's functions by the names of their fields."""
        raise NotImplementedError

    @property
    def frameworks(self) -> tuple[str, ...]:
        """The only framework that it can be trained in."""
        return (self.framework,)

    @property
    def kind(self) -> str:
        """Real, as far as the benchmark can know."""
        return "real"

    @property
    def schedule_name(self) -> str:
        """What the schedule is called in a run."""
        return self.schedule if isinstance(self.schedule, str) else OWN_SCHEDULE

    def horizon(self, tier: str) -> int:
        """Return the declared steps, the same in every tier."""
        return self.steps

    def facts(self) -> dict[str, Any]:
        """Return what a plan writes down about it."""
        facts: dict[str, Any] = {
            "version": self.version or 0,
            "title": self.title or self.name,
            "kind": self.kind,
            "loss": "the task's own",
            "batch": 0,
            "metrics": list(self.metrics or ()),
            "licence": "",
            "target": None,
            "own": True,
            "judged": self.judged,
            "larger_is_better": self.larger_is_better,
        }
        return facts | ({} if "test" in self.splits else {"verdict_on": "val"})

    def written_in(self) -> list[Any]:
        """Return its functions; none where a version is pinned."""
        if self.version is not None:
            return []
        return [*self.functions().values(), *([self.schedule] if callable(self.schedule) else [])]

    def settings(self) -> str:
        """Return every declared setting that is no function, name or title."""
        apart = {*self.functions(), "name", "title", "version", "steps", "schedule"}
        fields = (field.name for field in dataclasses.fields(self))
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in fields if name not in apart)

    def build(self, framework: str, data_dir: Path | None) -> Self:
        """Return the task itself."""
        if framework != self.framework:
            raise TaskError(f"{self.name} is a task for {self.framework}, not for {framework}")
        return self

    def evaluation_steps(self, steps: int) -> list[int]:
        """Return after which steps a run of `steps` is evaluated; the last one always is."""
        return evaluation_steps(steps, self.evaluate_every)

    def batch_stream(self, seed: int) -> Iterator[Any]:
        """Return the batches of a seed.

        Raises:
            TaskError: `batches` gives nothing that can be iterated over.
        """
        found = cast("Any", self).batches(seed)
        try:
            return iter(found)
        except TypeError:
            raise TaskError(
                f"{self.name}: batches returned a {type(found).__name__}; it has to yield batches"
            ) from None

    def measured(self, found: Any, split: str) -> dict[str, float]:
        """Return what `evaluate` gave for a split, as numbers.

        Raises:
            TaskError: it gave something else, or not what the verdict is about.
        """
        called = f"{self.name}: evaluate(…, {split!r})"
        if not isinstance(found, Mapping):
            raise TaskError(
                f"{called} returned a {type(found).__name__}; return a dictionary of numbers, such "
                f"as {{{self.judged!r}: 0.5}}"
            )
        try:
            numbers = {str(name): float(value) for name, value in found.items()}
        except (TypeError, ValueError):
            raise TaskError(
                f"{called} returned {_short(found)}; every value has to be one number"
            ) from None
        if self.judged not in numbers:
            raise TaskError(
                f"{called} returned {', '.join(map(repr, numbers)) or 'nothing'}, which lacks the "
                f"metric {self.judged!r}; return it, or say what is judged: judged=..."
            )
        if numbers[self.judged] < 0:
            raise TaskError(
                f"{called} returned {self.judged} = {numbers[self.judged]:g}; verdicts are about "
                "ratios, so what is judged has to be positive: judge an error or a loss"
            )
        return numbers


def evaluation_steps(steps: int, every: int | None) -> list[int]:
    """Return after which steps a run is evaluated, at most 200 times; the last one always is.

    Example:
        >>> evaluation_steps(100, None)[:4], evaluation_steps(100, 40)
        ([5, 10, 15, 20], [40, 80, 100])
    """
    if every is None:
        count = min(20, steps)
        return [round(steps * (i + 1) / count) for i in range(count)]
    # A curve may hold 200 points, so a long run is looked at less often.
    stride = every * max(1, -(-steps // (MAX_CURVE_POINTS * every)))
    return sorted({*range(stride, steps + 1, stride), steps})


def call_with(function: Callable[..., Any], *arguments: Any, **offered: Any) -> Any:
    """Call a function with those of the offered keywords that its signature names.

    Example:
        >>> call_with(lambda split, step: (split, step), "val", seed=3, step=7)
        ('val', 7)
    """
    try:
        named = inspect.signature(function).parameters
    except (TypeError, ValueError):  # such as a function written in C
        named = {}
    return function(*arguments, **{name: offered[name] for name in offered if name in named})


def ran_out(task: Task, served: int) -> TaskError:
    """Return the error of a task whose batches end too early."""
    return TaskError(
        f"{task.name}: batches ended after {served} batches, and a run of {task.steps} steps takes "
        f"{task.steps * task.accumulate}; start over when the data end: while True: yield from ..."
    )


def is_finite(numbers: Mapping[str, float]) -> bool:
    """Return whether every number is finite."""
    return all(map(math.isfinite, numbers.values()))


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
