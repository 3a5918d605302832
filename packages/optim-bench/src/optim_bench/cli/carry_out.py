"""Run a plan: progress on the console, signals, and the report at the end."""

import contextlib
import datetime
import shlex
import signal
import sys
import threading
import time
from collections.abc import Collection, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from optim_bench.cli import ui
from optim_bench.errors import BenchError, StoppedError, UsageError, unknown_name
from optim_bench.executors import EXECUTORS, Executor, Placement, make_executor
from optim_bench.executors.machine import commit
from optim_bench.protocol import Plan
from optim_bench.protocol.campaign import run_campaign
from optim_bench.report.pages import PAGE, write_report
from optim_bench.results.store import Store
from optim_bench.results.verdicts import results_of


@dataclass(frozen=True)
class Execution:
    """How the runs of a plan are carried out; nothing here decides a number.

    Args:
        executor: registry name.
        options: what only this executor understands.
        jobs: runs at a time, or None for the executor's own choice.
        timeout: seconds after which a run is given up, or None.
        data_dir: where full-size data sets lie.
        placement: which device the runs are on.
    """

    executor: str = "process"
    options: Mapping[str, str] = field(default_factory=dict)
    jobs: int | None = None
    timeout: float | None = None
    data_dir: Path | None = None
    placement: Placement = field(default_factory=Placement)


def execution_of(
    executor: str,
    options: list[str] | None,
    jobs: int | None,
    timeout: float | None,
    data_dir: Path | None,
    device: str = "cpu",
    jobs_per_device: int = 1,
) -> Execution:
    """Return the execution that a user's options mean.

    Raises:
        UsageError: the executor is unknown, an option is no `key=value`, or there is no folder.
    """
    if executor not in EXECUTORS:
        raise unknown_name("executor", executor, EXECUTORS)
    if data_dir is not None and not data_dir.is_dir():
        raise UsageError(f"no folder {data_dir}; --data-dir is where the full-size data sets lie")
    pairs: dict[str, str] = {}
    for text in options or ():
        key, _, value = text.partition("=")
        if not (key and value):
            raise UsageError(f"--executor-option is {text!r}; write key=value")
        pairs[key] = value
    placement = Placement(device, jobs_per_device)
    return Execution(executor, pairs, jobs, timeout, data_dir, placement)


def make_workers(
    execution: Execution, trainer: str, folder: Path, *, jobs: int | None = None
) -> Executor:
    """Return the executor that an execution means.

    Args:
        execution: how the runs are carried out.
        trainer: `"module:function"` to run.
        folder: of the comparison.
        jobs: instead of the execution's own.
    """
    return make_executor(
        execution.executor,
        trainer,
        jobs=execution.jobs if jobs is None else jobs,
        timeout=execution.timeout,
        data_dir=execution.data_dir,
        path=[str(Path.cwd())],
        folder=folder / "jobs",
        options=execution.options,
        placement=execution.placement,
    )


def carry_out(
    plan: Plan,
    store: Store,
    trainer: str,
    execution: Execution,
    console: Console,
    *,
    repeat: Collection[str] = (),
) -> dict[str, Any]:
    """Run what a plan still needs, write its report and return its results.

    Args:
        plan: what is compared.
        store: an opened store.
        trainer: `"module:function"` to run.
        execution: how the runs are carried out.
        console: for the progress.
        repeat: keys of runs to forget, once there is an executor that can repeat them.

    Raises:
        StoppedError: Ctrl-C or SIGTERM; every finished run is in the store.
        BenchError: the executor cannot be made, or a task does not do what its interface says.
    """
    with stoppable():
        workers = make_workers(execution, trainer, store.root)
        try:
            store.remove(repeat)
            with ui.live_progress(console) as listener, _noted(store, execution):
                run_campaign(plan, store, workers, listener)
        finally:
            workers.close()
    # From the files, as `report` does it: the same bytes whoever builds the report.
    results = results_of(store)
    write_report(store.root, results)
    return results


@contextlib.contextmanager
def _noted(store: Store, execution: Execution) -> Generator[None, None, None]:
    """Write down when, by what and for how long runs were made, if any were."""
    before, began = store.count(), time.monotonic()
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes")
    try:
        yield
    finally:
        made = store.count() - before
        if made > 0:
            store.note(
                {
                    "started": started,
                    "seconds": round(time.monotonic() - began),
                    "runs": made,
                    "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
                    "commit": commit(Path.cwd()),
                    "executor": execution.executor,
                    "device": execution.placement.device,
                }
            )


def conclude(console: Console, store: Store, results: Mapping[str, Any]) -> None:
    """Print what a comparison found, and where its page is.

    Raises:
        BenchError: a run failed.
    """
    show_results(console, results)
    path = (store.root / PAGE).resolve()
    console.print(f"Report: {path}", soft_wrap=True, highlight=False)
    failed = [failure for failure in results["failures"] if failure["status"] == "failed"]
    if failed:
        first = failed[0]
        raise BenchError(
            f"{len(failed)} of {results['runs']} runs failed, first {first['workload']}/"
            f"{first['framework']}/{first['optimizer']} with {first['error']}; mend the cause, "
            f"then: optim-bench retry {store.root}"
        )


@contextlib.contextmanager
def stoppable() -> Generator[None, None, None]:
    """Let SIGTERM end the block as Ctrl-C does, so that workers are stopped and nothing is lost.

    Raises:
        StoppedError: one of the two came.
    """
    received = [signal.SIGINT]

    def stop(number: int, _frame: FrameType | None) -> None:
        received.append(signal.Signals(number))
        raise KeyboardInterrupt

    # Only the main thread may set handlers; a notebook's worker thread goes without.
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stop) if main else None
    try:
        yield
    except KeyboardInterrupt as error:
        raise StoppedError(received[-1]) from error
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)


def show_results(console: Console, results: Mapping[str, Any]) -> None:
    """Print the verdict first, then the numbers it rests on."""
    console.print()
    for table in ui.verdict_tables(dict(results)):
        console.print(table)
    for sentence in results["headline"]:
        console.print(f"- {sentence}", markup=False, highlight=False)
    for caution in results["cautions"]:
        note(console, caution)


def name_strangers(store: Store, console: Console) -> None:
    """Name the files in `runs/` that are no runs; they are left alone."""
    if strangers := store.strangers():
        shown = ", ".join(strangers[:_MOST_NAMES])
        more = len(strangers) - _MOST_NAMES
        rest = f" and {more} more" if more > 0 else ""
        note(console, f"no run, and not read: {shown}{rest} in {store.runs}")


_MOST_NAMES = 3


def note(console: Console, text: str) -> None:
    """Print something that qualifies what stands above it."""
    console.print(f"Note: {text}", style="yellow", markup=False, highlight=False)
