"""What only a second look shows of a task: before a sweep is spent, once for each of its entries.

Two short runs of one seed have to start from the same parameters and batches, and to give the same
numbers. Built-in workloads are held to it by their own tests.
"""

from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from optim_bench.executors.train._session import SameFactory, Session
from optim_bench.optimizers import OptimizerInfo
from optim_bench.tasks import Task, TaskError

STEPS = 2
# Kernels of an accelerator may add in another order each time.
_TOLERANCE = {"cpu": 0.0}
_ELSEWHERE = 1e-3
# What was looked at lately in this process: a sweep opens the same few entries many times.
_CHECKED: deque[Any] = deque(maxlen=64)

Open = Callable[[], AbstractContextManager[Session]]


@dataclass(frozen=True)
class _Seen:
    start: Mapping[str, str]
    losses: np.ndarray
    measured: Mapping[str, float]


def check_entry(
    task: Task, info: OptimizerInfo, opened: Open, rate: float, seed: int, device: str
) -> None:
    """Check a task under an optimizer, unless this process has done so.

    Args:
        task: the user's.
        info: the optimizer.
        opened: opens a run of one seed.
        rate: its peak learning rate.
        seed: that seed, for the messages.
        device: where the run is.

    Raises:
        TaskError: the task is not what the interface says.
    """
    entry = (task, SameFactory(info.load_factory()))
    if entry in _CHECKED:
        return
    try:
        first = _short_run(task, opened, rate, task.splits)
    except TaskError:
        raise
    except Exception as error:
        if (raised := _raised_by(task, error)) is None:
            raise
        raise TaskError(f"{task.name}: {raised}") from error
    again = _short_run(task, opened, rate, task.splits[:1])
    name = task.name
    if first.start["parameters"] != again.start["parameters"]:
        raise TaskError(
            f"{name}: {task.initializer} gives another model when it is called again for seed "
            f"{seed}; draw its parameters from the seed alone"
        )
    if first.start.get("batch") != again.start.get("batch"):
        raise TaskError(
            f"{name}: batches gives another first batch when it is called again for seed {seed}; "
            "draw the order of the data from the seed alone"
        )
    tolerance = _TOLERANCE.get(device, _ELSEWHERE)
    for step, (left, right) in enumerate(zip(first.losses, again.losses, strict=True), 1):
        if not _close(left, right, tolerance):
            who = "loss" if step == 1 else f"loss, or the optimizer {info.name},"
            raise TaskError(
                f"{name}: {who} gives other numbers on a second run of seed {seed} ({left:.7g} and "
                f"{right:.7g} at step {step}); draw noise from the seeded generators alone, and "
                "keep nothing from run to run"
            )
    for metric, left in first.measured.items():
        right = again.measured.get(metric, float("nan"))
        if not _close(left, right, tolerance):
            raise TaskError(
                f"{name}: evaluate gives other numbers on a second run of seed {seed} ({metric}: "
                f"{left:.7g} and {right:.7g}); judge on the same examples every time"
            )
    _CHECKED.append(entry)


def _short_run(task: Task, opened: Open, rate: float, splits: tuple[str, ...]) -> _Seen:
    with opened() as session:
        losses = session.advance([rate] * min(STEPS, task.steps))
        found = {split: session.evaluate(split, STEPS) for split in splits}
        return _Seen(dict(session.start), losses, found[splits[0]])


def _raised_by(task: Task, error: Exception) -> str | None:
    """Say which function of the task an error comes from, None where it is from elsewhere."""
    codes = {getattr(f, "__code__", None): name for name, f in task.functions().items()}
    place = error.__traceback__
    while place is not None:
        code = place.tb_frame.f_code
        if code in codes:
            message = f"{type(error).__name__}: {' '.join(str(error).split())}"
            where = f"line {place.tb_lineno} of {Path(code.co_filename).name}"
            return f"{codes[code]} raises {message} ({where})"
        place = place.tb_next
    return None


def _close(left: float, right: float, tolerance: float) -> bool:
    return bool(left == right or np.isclose(left, right, rtol=tolerance, atol=0, equal_nan=True))
