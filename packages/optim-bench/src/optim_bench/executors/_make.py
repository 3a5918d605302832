"""Executors by name."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from optim_bench.errors import UsageError, unknown_name
from optim_bench.executors._base import DEFAULT_TRAINER, Executor, InlineExecutor
from optim_bench.executors._devices import Placement, available_cores, visible_gpus
from optim_bench.executors._process import CPU, ProcessExecutor

EXECUTORS = ("inline", "process", "submitit", "ray")
# Executor -> the module that it needs, which is also the name of the extra.
EXTRAS: Mapping[str, str] = {"submitit": "submitit", "ray": "ray"}
# A worker that has loaded both frameworks takes about a gigabyte; --jobs asks for more of them.
MOST_DEFAULT_JOBS = 4


def make_executor(
    name: str,
    trainer: str = DEFAULT_TRAINER,
    *,
    jobs: int | None = None,
    timeout: float | None = None,
    data_dir: Path | None = None,
    path: Sequence[str] = (),
    folder: Path | None = None,
    options: Mapping[str, str] | None = None,
    placement: Placement = CPU,
) -> Executor:
    """Return an executor.

    Args:
        name: one of `EXECUTORS`.
        trainer: `"module:function"` to run.
        jobs: runs at a time; by default one per core of this machine, at most 4.
        timeout: seconds after which a run is given up, or None.
        data_dir: where full-size data sets lie.
        path: folders to add to the workers' module search path.
        folder: where `submitit` keeps its jobs, on a file system that the nodes see; by default
            the current one.
        options: what only this executor understands, as text.
        placement: which device the runs are on.

    Raises:
        UsageError: the name is unknown, or the executor cannot do what an option asks.
        ModuleNotFoundError: its extra is not installed; `requirements` finds that out beforehand.
    """
    if name not in EXECUTORS:
        raise unknown_name("executor", name, EXECUTORS)
    options = options or {}
    if name in ("inline", "process") and options:
        raise UsageError(
            f"--executor {name} takes no --executor-option; {', '.join(sorted(options))} belongs "
            "to submitit or ray"
        )
    if name == "inline":
        for option, value, only in (("--jobs", jobs, 1), ("--timeout", timeout, None)):
            if value not in (None, only):
                raise UsageError(
                    f"{option} {value:g} needs worker processes; use --executor process"
                )
        if placement.kind == "cuda":  # in this process nothing can hide the others
            placement.environments(visible_gpus())
        return InlineExecutor(trainer, data_dir=data_dir, device=placement.device)
    if jobs is None:
        jobs = default_jobs(placement if name == "process" else CPU)
    if name == "process":
        return ProcessExecutor(
            trainer,
            jobs=jobs,
            timeout=timeout,
            data_dir=data_dir,
            path=path,
            placement=placement,
        )
    if placement.index is not None or placement.kind == "tpu":
        raise UsageError(
            f"--device {placement.device} is of this machine; with --executor {name} the cluster "
            "gives out its GPUs: --device cuda"
        )
    if name == "submitit":
        from optim_bench.executors._submitit import SubmititExecutor

        if placement.jobs_per_device > 1:
            raise UsageError(
                "--jobs-per-device is for the executors process and ray; SLURM gives a GPU to one "
                "job"
            )
        return SubmititExecutor(
            trainer,
            jobs=jobs,
            folder=folder or Path.cwd(),
            timeout=timeout,
            data_dir=data_dir,
            path=path,
            options=options,
            device=placement.kind,
        )
    from optim_bench.executors._ray import RayExecutor

    return RayExecutor(
        trainer,
        jobs=jobs,
        timeout=timeout,
        data_dir=data_dir,
        path=path,
        options=options,
        placement=placement,
    )


def default_jobs(placement: Placement = CPU) -> int:
    """Return how many runs go on at a time where nobody says.

    On the CPU one per core, at most 4; on devices of this machine as many as share them.
    """
    if placement.accelerated:
        return len(placement.environments(visible_gpus()))
    return min(len(available_cores()), MOST_DEFAULT_JOBS)
