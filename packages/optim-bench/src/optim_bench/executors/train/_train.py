"""One run from its spec to its record."""

import importlib
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from optim_bench.executors.machine import processor
from optim_bench.executors.train._check import check_entry
from optim_bench.executors.train._schedule import multipliers
from optim_bench.executors.train._session import (
    CHUNK,
    MissingExtraError,
    Session,
    open_session,
    require_framework,
)
from optim_bench.optimizers import OptimizerInfo, resolve
from optim_bench.records import OWN_SCHEDULE, REQUIRED_METRICS, RunRecord, RunSpec
from optim_bench.results.source import source_of
from optim_bench.tasks import Task, find_task, is_finite

Progress = Callable[[int, int], None]

_DISTRIBUTIONS = {
    "jax": ("jax", "jaxlib", "optax", "stam-jax"),
    "torch": ("torch", "stac-torch"),
}


class _DivergedError(Exception):
    """A loss is no longer finite."""


@dataclass
class _Log:
    """What a run has shown so far."""

    step: list[float] = field(default_factory=list)
    train_loss: list[float | None] = field(default_factory=list)
    measured: list[dict[str, float]] = field(default_factory=list)
    judged: list[dict[str, float]] = field(default_factory=list)
    first_step: float = 0.0
    loop: float = 0.0
    evaluation: list[float] = field(default_factory=list)


def train(
    spec: RunSpec,
    *,
    data_dir: Path | str | None = None,
    progress: Progress | None = None,
    device: str = "cpu",
) -> RunRecord:
    """Run a spec and return its record.

    The numbers depend on the spec alone: the same spec gives bit-identical metrics on one machine
    and one set of versions. The framework is imported here, not before; PyTorch runs on one
    thread. In JAX the program is compiled once per process for each workload, optimizer and set of
    hyperparameters other than the learning rate.

    Args:
        spec: what to run.
        data_dir: where full-size data sets lie; vendored workloads do not need it.
        progress: called as `progress(steps_done, steps)` after every evaluation.
        device: `"cpu"`, or an accelerator's name that the framework understands, such as `"cuda"`.

    Returns:
        The record. Its status is "diverged" when a loss stops being finite (all metrics are then
        `None`), and "failed" when the optimizer itself raises (the error is in the record, so that
        one broken optimizer does not end a sweep).

    Raises:
        UsageError: the spec names an unknown workload or task.
        ValueError: it names another version, or an unknown optimizer or hyperparameter.
        MissingExtraError: the framework is not installed.

    Example:
        >>> rate = {"learning_rate": 1e-3}
        >>> spec = RunSpec("digits-cnn", 1, "torch", "adamw", rate, 0, 40, "cosine")
        >>> record = train(spec)
        >>> record.status, record.parameters, round(record.metrics["test_accuracy"], 1)
        ('ok', 38282, 0.8)
    """
    entry = find_task(spec.task or spec.workload)
    if spec.workload_version != (entry.version or 0):
        raise ValueError(
            f"{spec.workload} is at version {entry.version or 0}, the spec asks for "
            f"{spec.workload_version}: its old results stay valid, but new runs need a new spec"
        )
    info = resolve(spec.optimizer, spec.framework)
    hyperparameters = info.validate(spec.hyperparameters)
    if spec.source is not None and source_of(info, spec.optimizer, entry) != spec.source:
        raise ValueError(
            f"the source of {spec.optimizer} or of {spec.workload} is not what it was when the "
            "comparison was planned; start another one in a new folder"
        )
    require_framework(spec.framework)
    if info.requires is not None:
        _require(info)
    started = time.perf_counter()
    task = entry.build(spec.framework, None if data_dir is None else Path(data_dir))

    def opened() -> AbstractContextManager[Session]:
        return open_session(task, info, hyperparameters, spec.seed, device)

    log = _Log()
    sizes: list[tuple[int, int]] = []
    start: Mapping[str, str] = {}
    state_bytes = 0
    status, error = "ok", None
    try:
        if entry is task:
            peak = float(hyperparameters["learning_rate"] or 0.0)
            check_entry(task, info, opened, peak, spec.seed, device)
        with opened() as session:
            start = session.start
            try:
                _run(spec, task, session, log, progress)
            finally:
                sizes, state_bytes = session.parameter_sizes(), session.state_bytes()
    except _DivergedError:
        status = "diverged"
    except Exception as caught:  # noqa: BLE001 - an optimizer's own error is a result, see Returns
        status, error = "failed", " ".join(f"{type(caught).__name__}: {caught}".split())
    return RunRecord(
        spec=spec,
        status=status,
        metrics=_metrics(task, log, status),
        curve=_curve(task, log),
        parameters=sum(entries for entries, _ in sizes),
        parameter_bytes=sum(size for _, size in sizes),
        state_bytes=state_bytes,
        seconds={
            "total": time.perf_counter() - started,
            "first_step": log.first_step,
            "loop": log.loop,
            # The first one may compile.
            "evaluation": statistics.fmean(log.evaluation[1:] or log.evaluation or [0.0]),
        },
        environment=environment(spec.framework, device),
        error=error,
        start="/".join(start.values()) or None,
    )


def environment(framework: str, device: str = "cpu") -> dict[str, str]:
    """Return the versions that decide a run's numbers, and the kind of machine."""
    versions = {"python": platform.python_version(), "machine": platform.machine()}
    versions |= {"system": platform.system(), "processor": processor(), "device": device}
    if device != "cpu":
        versions |= importlib.import_module(
            f"optim_bench.executors.train._{framework}"
        ).device_facts(device)
    for name in ("numpy", "optim-bench", *_DISTRIBUTIONS[framework]):
        versions[name] = metadata.version(name)
    return versions


def _require(info: OptimizerInfo) -> None:
    try:
        metadata.version(str(info.requires))
    except metadata.PackageNotFoundError:
        raise MissingExtraError(
            f"{info.key} needs {info.requires}, which is not installed: pip install {info.requires}"
        ) from None


def _run(spec: RunSpec, task: Task, session: Session, log: _Log, progress: Progress | None) -> None:
    peak = float(spec.hyperparameters["learning_rate"] or 0.0)
    schedule = task.schedule if spec.schedule == OWN_SCHEDULE else spec.schedule
    rates = [peak * factor for factor in multipliers(schedule, spec.steps)]
    points = task.evaluation_steps(spec.steps)
    done, pending = 0, []
    for size in _pieces(points):
        before = time.perf_counter()
        losses = session.advance(rates[done : done + size])
        elapsed = time.perf_counter() - before
        if done == 0:
            log.first_step = elapsed
        else:
            log.loop += elapsed
        done += size
        pending.append(losses)
        if not np.isfinite(losses).all():
            _note(log, done, None, {})
            raise _DivergedError
        if done in points:
            before = time.perf_counter()
            measured = _measure(task, session, done, spec.steps)
            log.evaluation.append(time.perf_counter() - before)
            mean = float(np.concatenate(pending).mean(dtype=np.float64))
            pending = []
            _note(log, done, mean, measured)
            if not is_finite(measured):
                raise _DivergedError
            log.judged.append(measured)
            if progress is not None:
                progress(done, spec.steps)


def _pieces(points: list[int]) -> Iterator[int]:
    """Cut the run at every evaluation and into chunks; the first step, which compiles, is alone."""
    done = 0
    for point in points:
        while done < point:
            size = 1 if done == 0 else min(CHUNK, point - done)
            yield size
            done += size


def _measure(task: Task, session: Session, step: int, steps: int) -> dict[str, float]:
    final = step == steps
    stream = task.stream and 2 * step > steps
    splits = task.splits if final or stream else task.splits[:1]
    found = {split: session.evaluate(split, step) for split in splits}
    # Where nothing is held back for a test, what chose is what is reported, and the page says so.
    if len(splits) == len(task.splits) and "test" not in splits:
        found["test"] = found["val"]
    return {
        f"{split}_{name}": value for split, part in found.items() for name, value in part.items()
    }


def _note(log: _Log, step: int, train_loss: float | None, measured: dict[str, float]) -> None:
    log.step.append(step)
    log.train_loss.append(_finite(train_loss))
    log.measured.append(measured)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _curve(task: Task, log: _Log) -> dict[str, list[Any]]:
    names = dict.fromkeys(("val_loss", f"val_{task.judged}"))
    measured = {name: [_finite(m.get(name)) for m in log.measured] for name in names}
    return {"step": log.step, "train_loss": log.train_loss, **measured}


def _metrics(task: Task, log: _Log, status: str) -> Mapping[str, float | None]:
    judged = [entry for entry in log.judged if f"test_{task.judged}" in entry]
    always = (*REQUIRED_METRICS, f"val_{task.judged}", f"test_{task.judged}")
    named = task.metrics if task.metrics is not None else [n for part in judged[-1:] for n in part]
    names = dict.fromkeys((*always, *named))
    if status != "ok":
        return dict.fromkeys(names)
    metrics: dict[str, float | None] = {
        name: float(np.mean([entry[name] for entry in judged])) if name in judged[-1] else None
        for name in names
    }
    if "train" not in task.splits:  # what its batches showed before the evaluations that count
        metrics["train_loss"] = float(
            np.mean([v for v in log.train_loss[-len(judged) :] if v is not None])
        )
    if "plasticity_slope" in names:
        metrics["plasticity_slope"] = _slope(log)
    return metrics


def _slope(log: _Log) -> float:
    """Return the least-squares slope of ln(val loss) per evaluation: above 0, learning decays."""
    losses = np.log(np.maximum([part["val_loss"] for part in log.measured], 1e-12))
    if len(losses) < 2:
        return 0.0
    return float(np.polyfit(np.arange(len(losses)), losses, 1)[0])
