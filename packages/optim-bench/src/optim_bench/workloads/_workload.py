"""What a workload is: a declaration that needs no framework, and a task that serves arrays."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
SPLITS = ("train", "val", "test")
TIERS = ("smoke", "quick", "standard", "full")


class Task(Protocol):
    """The numbers of a workload: both frameworks get the same ones, and so does every optimizer."""

    def initial(self, seed: int) -> dict[str, Array]:
        """Return the initial parameters, float32, in the layout of `torch.nn`, layer by layer."""
        ...

    def chunks(self, seed: int, sizes: Sequence[int]) -> Iterator[tuple[Array, Array]]:
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


@dataclass(frozen=True)
class Workload:
    """A training problem, fixed and versioned: all but the optimizer and the seed.

    Args:
        name: registry name.
        version: raised whenever a number of a run could change; results of different versions
            never meet.
        title: one line for people.
        kind: `"real"` data or `"synthetic"`; a synthetic workload stays out of every aggregate.
        model: name of the model in `optim_bench.train`.
        loss: `"cross_entropy"`, `"squared_error"` or `"objective"` (the model's output is the
            loss, and there are no examples).
        metrics: what a run reports beside `train_loss`, `val_loss` and `test_loss`.
        steps: the horizon for each tier.
        batch: examples per step.
        schedule: the learning-rate schedule that suits the problem, `"cosine"` or `"constant"`.
        judged: `"last"` (final parameters) or `"second half"` (mean over the evaluations of the
            second half of the run, for streams that never settle).
        evaluate_every: steps between evaluations, or `None` for 20 evenly spaced ones.
        unrolled: whether JAX runs several steps per call (`True`) or one (convolutions are slower
            inside a loop on the CPU: 6.3 against 1.3 ms a step measured for digits-cnn).
        sources: names of the vendored files it reads.
        files: names of the files that the user has to bring in `data_dir`.
        licence: terms of the data in one line.
        target: pre-registered goal for steps-to-target, or `None`.
        task: builds the task; `data_dir` is where full-size sets lie, and vendored workloads
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
    task: Callable[[Path | None], Task]
    sources: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    licence: str = ""
    schedule: str = "cosine"
    judged: str = "last"
    evaluate_every: int | None = None
    unrolled: bool = True
    target: Target | None = None

    def evaluation_steps(self, steps: int) -> list[int]:
        """Return after which steps a run of `steps` is evaluated; the last one always is.

        Example:
            >>> from optim_bench.workloads import WORKLOADS
            >>> WORKLOADS["digits-cnn"].evaluation_steps(100)[:4]
            [5, 10, 15, 20]
        """
        if self.evaluate_every is None:
            count = min(20, steps)
            return [round(steps * (i + 1) / count) for i in range(count)]
        # A curve may hold 200 points, so a long run is looked at less often.
        stride = self.evaluate_every * max(1, -(-steps // (200 * self.evaluate_every)))
        return sorted({*range(stride, steps + 1, stride), steps})


def generator(seed: int, purpose: str) -> np.random.Generator:
    """Return an independent random stream for one purpose ("init", "order", …) of one seed."""
    return np.random.default_rng([seed, *purpose.encode("ascii")])
