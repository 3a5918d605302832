"""One run from its spec to its record."""

import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import numpy as np

from optim_bench import workloads
from optim_bench.optimizers import OptimizerInfo, resolve
from optim_bench.records import RunRecord, RunSpec
from optim_bench.source import source_of
from optim_bench.train._errors import MissingExtraError, require_framework
from optim_bench.train._schedule import multipliers
from optim_bench.train._session import CHUNK, EVALUATION_SLICE, Session, open_session
from optim_bench.workloads import Task, Workload

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
    val_loss: list[float | None] = field(default_factory=list)
    judged: list[dict[str, float]] = field(default_factory=list)
    first_step: float = 0.0
    loop: float = 0.0


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
        ValueError: the spec names an unknown workload, version, optimizer or hyperparameter.
        MissingExtraError: the framework is not installed.

    Example:
        >>> rate = {"learning_rate": 1e-3}
        >>> spec = RunSpec("digits-cnn", 1, "torch", "adamw", rate, 0, 40, "cosine")
        >>> record = train(spec)
        >>> record.status, record.parameters, round(record.metrics["test_accuracy"], 1)
        ('ok', 38282, 0.8)
    """
    workload = workloads.get(spec.workload)
    if spec.workload_version != workload.version:
        raise ValueError(
            f"{spec.workload} is at version {workload.version}, the spec asks for "
            f"{spec.workload_version}: its old results stay valid, but new runs need a new spec"
        )
    info = resolve(spec.optimizer, spec.framework)
    hyperparameters = info.validate(spec.hyperparameters)
    if spec.source is not None and source_of(info, spec.optimizer, workload) != spec.source:
        raise ValueError(
            f"the source of {spec.optimizer} is not what it was when the comparison was planned; "
            "start another one in a new folder"
        )
    require_framework(spec.framework)
    if info.requires is not None:
        _require(info)
    started = time.perf_counter()
    task = workload.task(None if data_dir is None else Path(data_dir))
    initial = task.initial(spec.seed)
    log = _Log()
    sizes: list[tuple[int, int]] = []
    state_bytes = 0
    status, error = "ok", None
    opened = open_session(workload, info, hyperparameters, initial, device, spec.seed)
    try:
        with opened as session:
            try:
                _run(spec, workload, task, session, log, progress)
            finally:
                sizes, state_bytes = session.parameter_sizes(), session.state_bytes()
    except _DivergedError:
        status = "diverged"
    except Exception as caught:  # noqa: BLE001 - an optimizer's own error is a result, see Returns
        status, error = "failed", " ".join(f"{type(caught).__name__}: {caught}".split())
    return RunRecord(
        spec=spec,
        status=status,
        metrics=_metrics(workload, log, status),
        curve={"step": log.step, "train_loss": log.train_loss, "val_loss": log.val_loss},
        parameters=sum(entries for entries, _ in sizes),
        parameter_bytes=sum(size for _, size in sizes),
        state_bytes=state_bytes,
        seconds={
            "total": time.perf_counter() - started,
            "first_step": log.first_step,
            "loop": log.loop,
        },
        environment=environment(spec.framework, device),
        error=error,
    )


def environment(framework: str, device: str = "cpu") -> dict[str, str]:
    """Return the versions that decide a run's numbers, and the kind of machine."""
    versions = {"python": platform.python_version(), "machine": platform.machine()}
    versions |= {"system": platform.system(), "device": device}
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


def _run(
    spec: RunSpec,
    workload: Workload,
    task: Task,
    session: Session,
    log: _Log,
    progress: Progress | None,
) -> None:
    peak = float(spec.hyperparameters["learning_rate"] or 0.0)
    rates = [peak * factor for factor in multipliers(spec.schedule, spec.steps)]
    points = workload.evaluation_steps(spec.steps)
    sizes = list(_pieces(points))
    done, pending = 0, []
    for size, (inputs, targets) in zip(sizes, task.chunks(spec.seed, sizes), strict=True):
        before = time.perf_counter()
        losses = session.advance(inputs, targets, rates[done : done + size])
        elapsed = time.perf_counter() - before
        if done == 0:
            log.first_step = elapsed
        else:
            log.loop += elapsed
        done += size
        pending.append(losses)
        if not np.isfinite(losses).all():
            _note(log, done, None, None)
            raise _DivergedError
        if done in points:
            judged = _judge(workload, task, session, spec, done)
            mean = float(np.concatenate(pending).mean(dtype=np.float64))
            pending = []
            _note(log, done, mean, judged["val_loss"])
            if not all(map(math.isfinite, judged.values())):
                raise _DivergedError
            log.judged.append(judged)
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


def _judge(
    workload: Workload, task: Task, session: Session, spec: RunSpec, step: int
) -> dict[str, float]:
    final = step == spec.steps
    stream = workload.judged == "second half" and 2 * step > spec.steps
    splits = workloads.SPLITS if final or stream else ("val",)
    results: dict[str, float] = {}
    for split in splits:
        inputs, targets = task.evaluation(split, spec.seed, step)
        parts = []
        for start in range(0, len(inputs), EVALUATION_SLICE):
            x, y = (
                inputs[start : start + EVALUATION_SLICE],
                targets[start : start + EVALUATION_SLICE],
            )
            parts.append((*session.evaluate(x, y), len(x)))
        losses, hits, counts = (np.array(column) for column in zip(*parts, strict=True))
        results[f"{split}_loss"] = float(np.average(losses, weights=counts))
        if f"{split}_accuracy" in workload.metrics:
            results[f"{split}_accuracy"] = float(np.average(hits, weights=counts))
    return results


def _note(log: _Log, step: int, train_loss: float | None, val_loss: float | None) -> None:
    def finite(value: float | None) -> float | None:
        return value if value is not None and math.isfinite(value) else None

    log.step.append(step)
    log.train_loss.append(finite(train_loss))
    log.val_loss.append(finite(val_loss))


def _metrics(workload: Workload, log: _Log, status: str) -> Mapping[str, float | None]:
    names = (*(f"{split}_loss" for split in workloads.SPLITS), *workload.metrics)
    if status != "ok":
        return dict.fromkeys(names)
    judged = [entry for entry in log.judged if "test_loss" in entry]
    derived = {"test_bits_per_character", "plasticity_slope"}
    metrics = {
        name: float(np.mean([entry[name] for entry in judged]))
        for name in names
        if name not in derived
    }
    if "test_bits_per_character" in names:
        metrics["test_bits_per_character"] = metrics["test_loss"] / math.log(2)
    if "plasticity_slope" in names:
        metrics["plasticity_slope"] = _slope(log)
    return metrics


def _slope(log: _Log) -> float:
    """Return the least-squares slope of ln(val loss) per evaluation: above 0, learning decays."""
    losses = np.log(np.maximum(np.array(log.val_loss, np.float64), 1e-12))
    if len(losses) < 2:
        return 0.0
    return float(np.polyfit(np.arange(len(losses)), losses, 1)[0])
