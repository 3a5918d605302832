"""Executors by name."""

from collections.abc import Sequence
from pathlib import Path

from optim_bench.errors import BenchError, unknown_name
from optim_bench.executors._base import DEFAULT_TRAINER, Executor
from optim_bench.executors._inline import InlineExecutor
from optim_bench.executors._pinning import available_cores
from optim_bench.executors._process import ProcessExecutor

EXECUTORS = ("inline", "process")
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
) -> Executor:
    """Return an executor.

    Args:
        name: one of `EXECUTORS`.
        trainer: `"module:function"` to run.
        jobs: runs at a time; by default one per core, at most 4.
        timeout: seconds after which a run is given up, or None.
        data_dir: where full-size data sets lie.
        path: folders to add to the workers' module search path.

    Raises:
        BenchError: the name is unknown, or the executor cannot do what an option asks.
    """
    if name not in EXECUTORS:
        raise unknown_name("executor", name, EXECUTORS)
    if name == "inline":
        for option, value, only in (("--jobs", jobs, 1), ("--timeout", timeout, None)):
            if value not in (None, only):
                raise BenchError(
                    f"{option} {value:g} needs worker processes; use --executor process"
                )
        return InlineExecutor(trainer, data_dir=data_dir)
    if jobs is None:
        jobs = min(len(available_cores()), MOST_DEFAULT_JOBS)
    return ProcessExecutor(trainer, jobs=jobs, timeout=timeout, data_dir=data_dir, path=path)
