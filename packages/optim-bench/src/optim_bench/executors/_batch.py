"""What a cluster job does: a batch of runs in turn, each record written as soon as it is there.

The folder is the only line between a job and the comparison that asked for it:

    lease             changes while the comparison lives
    started/<job>     the job got as far as this module
    left/<job>        the job gave up: the lease was gone, or its own time nearly was
    records/<key>.json

A comparison that is killed cannot cancel its jobs, so the jobs watch the lease: removed or not
renewed, it ends them. Runs happen in a worker process of the job, so that one run that crashes or
takes too long costs itself alone, as everywhere else.
"""

import contextlib
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from optim_bench.executors._devices import Placement
from optim_bench.executors._process import ProcessExecutor
from optim_bench.files import write_json
from optim_bench.records import RunSpec

LEASE_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Batch:
    """A batch of runs; all of it crosses to another machine.

    Args:
        name: of the job, unique within the folder.
        folder: on a file system that both machines see.
        specs: one group's runs, in order.
        trainer: `"module:function"` to run.
        data_dir: where full-size data sets lie.
        timeout: seconds after which a run is given up, or None.
        path: folders to add to the worker's module search path.
        lease_seconds: how long the job goes on without a sign of life.
        seconds: how long the cluster lets it run from its start, or None.
        device: `"cpu"`, or the kind of device that the cluster gives it.
    """

    name: str
    folder: Path
    specs: tuple[RunSpec, ...]
    trainer: str
    data_dir: Path | None
    timeout: float | None
    path: tuple[str, ...]
    lease_seconds: float
    seconds: float | None
    device: str = "cpu"


def make_folders(folder: Path) -> None:
    """Prepare a folder for batches."""
    for name in ("started", "left", "records"):
        (folder / name).mkdir()


def record_path(folder: Path, spec: RunSpec) -> Path:
    """Return where the record of a run appears."""
    return folder / "records" / f"{spec.key()}.json"


def serve(batch: Batch) -> None:
    """Run a batch. A job that the cluster starts again goes on behind the records that exist.

    After its first run it begins none that the cluster would probably end half-way: what is left
    goes into another job, where ending it would cost a run.
    """
    began, longest = time.monotonic(), 0.0
    (batch.folder / "started" / batch.name).touch()
    threading.Thread(target=_watch, args=(batch,), daemon=True).start()
    executor = ProcessExecutor(
        batch.trainer,
        jobs=1,
        data_dir=batch.data_dir,
        timeout=batch.timeout,
        path=batch.path,
        pinned=False,
        placement=Placement(batch.device),
    )
    try:
        missing = [s for s in batch.specs if not record_path(batch.folder, s).exists()]
        for spec in missing:
            now = time.monotonic()
            if batch.seconds is not None and longest and now - began + 2 * longest > batch.seconds:
                (batch.folder / "left" / batch.name).touch()
                return
            executor.submit(spec)
            record = executor.wait()
            write_json(record_path(batch.folder, record.spec), record.to_json())
            longest = max(longest, time.monotonic() - now)
    finally:
        executor.close()


def _watch(batch: Batch) -> None:
    """End the whole process when the lease is gone; its worker ends with it."""
    lease = batch.folder / "lease"
    last, since = None, time.monotonic()
    while True:
        try:
            now = lease.read_bytes()
        except FileNotFoundError:
            break
        except OSError:
            now = last  # a file server that answers late: only the clock decides
        if now != last:
            last, since = now, time.monotonic()
        if time.monotonic() - since > batch.lease_seconds:
            break
        time.sleep(LEASE_POLL_SECONDS)
    # Word of it is a courtesy: the disk may be full, or the folder on its way out.
    with contextlib.suppress(OSError):
        if batch.folder.exists():
            (batch.folder / "left" / batch.name).touch()
    os._exit(0)
