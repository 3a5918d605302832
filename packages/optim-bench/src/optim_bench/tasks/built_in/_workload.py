"""What a built-in workload is: a declaration without a framework, and arrays for every one of them.

A run trains the `TorchTask` or the `JaxTask` that `build` makes of the two.
"""

import dataclasses
import functools
import importlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from optim_bench.records import FRAMEWORKS
from optim_bench.tasks._task import Task, evaluation_steps

Array = NDArray[Any]
SPLITS = ("train", "val", "test")
TIERS = ("smoke", "quick", "standard", "full")
# At most so many examples in one evaluation call.
EVALUATION_SLICE = 2000
# Steps whose batches are drawn at once.
_CHUNK = 32


class Arrays(Protocol):
    """The numbers of a workload: both frameworks get the same ones, and so does every optimizer."""

    def initial(self, seed: int) -> dict[str, Array]:
        """Return the initial parameters, float32, in the layout of `torch.nn`, layer by layer."""
        ...

    def chunks(self, seed: int, sizes: Iterable[int]) -> Iterator[tuple[Array, Array]]:
        """Yield `(inputs, targets)` for consecutive runs of steps, axes (step, example, …).

        How the steps are cut into chunks does not change what they hold.
        """
        ...

    def evaluation(self, split: str, seed: int, step: int) -> tuple[Array, Array]:
        """Return the fixed `(inputs, targets)` on which a split is judged after `step` steps."""
        ...


@dataclass(frozen=True)
class Target:
    """A pre-registered goal: the first of two evaluations in a row at or below `value` reaches it.

    Args:
        metric: a name in the curve, for example `"val_loss"`.
        value: the level.
        origin: how the level was chosen, in one sentence.
    """

    metric: str
    value: float
    origin: str = (
        "median validation loss of tuned AdamW over 20 seeds at three quarters of the standard "
        "horizon (tools/calibrate_targets.py)"
    )


@dataclass(frozen=True, eq=False)
class Workload:
    """A training problem, fixed and versioned: all but the optimizer and the seed.

    Args:
        name: registry name.
        version: raised whenever a number of a run could change; results of different versions
            never meet.
        title: one line for people.
        kind: `"real"` data or `"synthetic"`; a synthetic workload stays out of every aggregate.
        model: name of the model among the built-in ones.
        loss: `"cross_entropy"`, `"squared_error"` or `"objective"` (the model's output is the
            loss, and there are no examples).
        metrics: what a run reports beside `train_loss`, `val_loss` and `test_loss`.
        steps: the horizon for each tier.
        batch: examples per step.
        schedule: the learning-rate schedule that suits the problem, `"cosine"` or `"constant"`.
        stream: as `Task` has it.
        evaluate_every: steps between evaluations, or `None` for 20 evenly spaced ones.
        unrolled: whether JAX runs several steps per call (`True`) or one (convolutions are slower
            inside a loop on the CPU: 6.3 against 1.3 ms a step measured for digits-cnn).
        sources: names of the vendored files it reads.
        files: names of the files that the user has to bring in `data_dir`.
        licence: terms of the data in one line.
        target: pre-registered goal for steps-to-target, or `None`.
        arrays: gives the numbers; `data_dir` is where full-size sets lie, and vendored workloads
            ignore it.
    """

    name: str
    version: int
    title: str
    kind: str
    model: str
    loss: str
    metrics: tuple[str, ...]
    steps: Mapping[str, int]
    batch: int
    arrays: Callable[[Path | None], Arrays]
    sources: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    licence: str = ""
    schedule: str = "cosine"
    stream: bool = False
    evaluate_every: int | None = None
    unrolled: bool = True
    target: Target | None = None

    @property
    def frameworks(self) -> tuple[str, ...]:
        """Both: a workload has the same arrays and models in each."""
        return FRAMEWORKS

    @property
    def judged(self) -> str:
        """The loss chooses and judges."""
        return "loss"

    @property
    def larger_is_better(self) -> bool:
        """No loss is the better for being larger."""
        return False

    @property
    def schedule_name(self) -> str:
        """The schedule that suits the problem."""
        return self.schedule

    def horizon(self, tier: str) -> int:
        """Return the steps of a run in a tier."""
        return self.steps[tier]

    def facts(self) -> dict[str, Any]:
        """Return what a plan writes down about it."""
        return {
            "version": self.version,
            "title": self.title,
            "kind": self.kind,
            "loss": self.loss,
            "batch": self.batch,
            "metrics": list(self.metrics),
            "licence": self.licence,
            "target": None if self.target is None else dataclasses.asdict(self.target),
        }

    def written_in(self) -> list[Any]:
        """Return where its numbers come from."""
        return [self.arrays]

    def settings(self) -> str:
        """Return nothing: the version stands for what it declares."""
        return ""

    def build(self, framework: str, data_dir: Path | None) -> Task:
        """Return the task of a framework, always the same one for the same arguments."""
        return _build(self, framework, data_dir)

    def evaluation_steps(self, steps: int) -> list[int]:
        """Return after which steps a run of `steps` is evaluated; the last one always is.

        Example:
            >>> from optim_bench.tasks.built_in import WORKLOADS
            >>> WORKLOADS["digits-cnn"].evaluation_steps(100)[:4]
            [5, 10, 15, 20]
        """
        return evaluation_steps(steps, self.evaluate_every)

    def declared(self) -> dict[str, Any]:
        """Return what its tasks declare, as keywords."""
        return {
            "steps": self.steps["standard"],
            "evaluate_every": self.evaluate_every,
            "schedule": self.schedule,
            "stream": self.stream,
            "splits": ("val", "test", "train"),
            "name": self.name,
            "version": self.version,
            "title": self.title,
            "metrics": self.metrics,
        }


# A sweep in one process meets few of them at a time; a full-size one holds its data.
@functools.lru_cache(maxsize=16)
def _build(workload: Workload, framework: str, data_dir: Path | None) -> Task:
    models = importlib.import_module(f"optim_bench.tasks.built_in._{framework}_models")
    return models.task_of(workload, workload.arrays(data_dir))


def batches(arrays: Arrays, seed: int) -> Iterator[tuple[Array, Array]]:
    """Yield `(inputs, targets)` of one step after the other, for ever."""
    for inputs, targets in arrays.chunks(seed, itertools.repeat(_CHUNK)):
        yield from zip(inputs, targets, strict=True)


def judged_in_slices(
    judge: Callable[[Array, Array], tuple[float, float]], inputs: Array, targets: Array
) -> dict[str, float]:
    """Return mean loss and accuracy of a split, which may be too large for one call.

    Args:
        judge: from at most `EVALUATION_SLICE` examples to their mean loss and accuracy.
        inputs: the examples.
        targets: what they should give.
    """
    parts = []
    for start in range(0, len(inputs), EVALUATION_SLICE):
        x, y = inputs[start : start + EVALUATION_SLICE], targets[start : start + EVALUATION_SLICE]
        parts.append((*judge(x, y), len(x)))
    losses, shares, counts = (np.array(column) for column in zip(*parts, strict=True))
    loss = float(np.average(losses, weights=counts))
    accuracy = float(np.average(shares, weights=counts))
    return {"loss": loss, "accuracy": accuracy, "bits_per_character": loss / np.log(2).item()}


def generator(seed: int, purpose: str) -> np.random.Generator:
    """Return an independent random stream for one purpose ("init", "order", …) of one seed."""
    return np.random.default_rng([seed, *purpose.encode("ascii")])
