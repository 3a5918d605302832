"""Runs as jobs of a SLURM cluster, through submitit.

A training run here takes seconds, a place in a cluster's queue takes longer: a job gets a batch of
runs that share a compiled program, as large as keeps all jobs busy. At most `jobs` of them are in
the queue at a time, because submitit's own local executor starts everything that it is given.
"""

import contextlib
import math
import shutil
import signal
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError

from optim_bench.errors import BenchError, UsageError
from optim_bench.executors._backlog import Backlog, group_of
from optim_bench.executors._base import checked_record, failed_record
from optim_bench.executors._batch import Batch, make_folders, record_path, serve
from optim_bench.files import read_json
from optim_bench.records import RunRecord, RunSpec

# Option -> (submitit's parameter, its type); the cluster's own defaults hold for what is not given.
_SLURM: Mapping[str, tuple[str, type]] = {
    "partition": ("slurm_partition", str),
    "account": ("slurm_account", str),
    "qos": ("slurm_qos", str),
    "constraint": ("slurm_constraint", str),
    "gres": ("slurm_gres", str),
    "time": ("timeout_min", int),
    "memory": ("mem_gb", int),
}
CLUSTERS = ("slurm", "local")
DEFAULT_MINUTES = 60
DEFAULT_MEMORY_GB = 4
LEASE_SECONDS = 300.0
# submitit ends a job 90 s before its time, SLURM's clock may be a minute early, and Python has to
# start.
_RESERVE_SECONDS = 180.0
_POLL_SECONDS = 0.2
_BEAT_SECONDS = 10.0
# sacct answers for every job at once, and a busy cluster's accounting should not be asked often.
_STATE_SECONDS = 30.0
# A network file system may show a record a little after the job that wrote it has ended.
_GRACE_SECONDS = 3.0
_FAREWELL_SECONDS = 10.0


@dataclass
class _Job:
    batch: Batch
    handle: Any
    pending: list[RunSpec]
    ended: float | None = None


class SubmititExecutor:
    """The executor for SLURM, and for submitit's local imitation of it.

    Args:
        trainer: `"module:function"` to run.
        jobs: jobs in the cluster's queue at a time, at least 1.
        folder: where batches, records in transit and logs lie; the nodes have to see it.
        data_dir: where full-size data sets lie; the nodes have to see it.
        timeout: seconds after which a run is given up, or None.
        path: folders to add to the workers' module search path; the nodes have to see them.
        options: `cluster` ("slurm" or "local"), and for SLURM `partition`, `account`, `qos`,
            `constraint`, `gres`, `time` (minutes per job) and `memory` (GB per job).
        device: `"cpu"`, or `"cuda"`: every job then asks SLURM for one GPU, unless `gres` says
            which.
        lease_seconds: how long jobs outlive a comparison that was killed; 5 minutes if None.

    Raises:
        BenchError: an option is wrong, or this machine has no SLURM.
    """

    def __init__(
        self,
        trainer: str,
        *,
        jobs: int,
        folder: Path,
        data_dir: Path | None = None,
        timeout: float | None = None,
        path: Sequence[str] = (),
        options: Mapping[str, str] | None = None,
        lease_seconds: float | None = None,
        device: str = "cpu",
    ) -> None:
        if jobs < 1:
            raise ValueError(f"jobs is {jobs}; at least one job has to run")
        self._cluster, parameters = _parameters(dict(options or {}), device)
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = Path(tempfile.mkdtemp(dir=folder, prefix="jobs-")).resolve()
        make_folders(self._folder)
        self._lease = self._folder / "lease"
        self._beat_at = -math.inf
        self._beat()
        self._executor = submitit.AutoExecutor(self._folder / "logs", cluster=self._cluster)
        self._executor.update_parameters(**parameters)
        minutes = None if self._cluster == "local" else parameters["timeout_min"]
        self._start = {
            "trainer": trainer,
            "data_dir": None if data_dir is None else data_dir.resolve(),
            "timeout": timeout,
            "path": tuple(path),
            "lease_seconds": LEASE_SECONDS if lease_seconds is None else lease_seconds,
            "seconds": None if minutes is None else max(0.0, 60.0 * minutes - _RESERVE_SECONDS),
            "device": device,
        }
        self._most = jobs
        self._backlog = Backlog()
        self._jobs: list[_Job] = []
        self._ready: deque[RunRecord] = deque()
        self._submitted = 0
        self._state_at = -math.inf
        self._keep_logs = False

    def submit(self, spec: RunSpec) -> None:
        """Queue a run; it goes to the cluster in a batch of its kind."""
        self._backlog.add(spec)

    def wait(self) -> RunRecord:
        """Return the next finished record.

        Raises:
            BenchError: the cluster refuses jobs, or none of them even starts.
        """
        while True:
            if self._ready:
                return self._ready.popleft()
            if not self._backlog and not any(job.pending for job in self._jobs):
                raise RuntimeError("nothing is queued")
            self._beat()
            self._dispatch()
            self._collect()
            if not self._ready:
                time.sleep(_POLL_SECONDS)

    def withdraw(self, keys: Collection[str]) -> list[str]:
        """Forget queued runs that have not started."""
        return self._backlog.withdraw(keys)

    def close(self) -> None:
        """Cancel the jobs and forget what is queued."""
        self._backlog.clear()
        self._ready.clear()
        self._lease.unlink(missing_ok=True)
        if self._cluster == "local":
            self._await_local()
        else:
            for job in self._jobs:
                with contextlib.suppress(OSError):
                    job.handle.cancel(check=False)
        self._jobs.clear()
        if not self._keep_logs:
            shutil.rmtree(self._folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                self._folder.parent.rmdir()

    def _await_local(self) -> None:
        """Wait until the jobs have seen that the lease is gone: nothing stays behind."""
        deadline = time.monotonic() + _FAREWELL_SECONDS
        while any(not job.handle.done() for job in self._jobs) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)

    def _beat(self) -> None:
        if time.monotonic() - self._beat_at > _BEAT_SECONDS:
            self._beat_at = time.monotonic()
            # The file server may be late, or full: jobs that miss this for long leave, and are
            # sent again.
            with contextlib.suppress(OSError):
                self._lease.write_text(str(self._beat_at), encoding="ascii")

    def _dispatch(self) -> None:
        while self._backlog and len(self._jobs) < self._most:
            others = [group_of(job.batch.specs[0]) for job in self._jobs]
            size = math.ceil(len(self._backlog) / self._most)
            specs = self._backlog.take_batch(size, others)
            name = str(self._submitted)
            batch = Batch(name=name, folder=self._folder, specs=tuple(specs), **self._start)
            try:
                with _deaf_to_interrupts():
                    handle = self._executor.submit(serve, batch)
            except (FailedJobError, subprocess.SubprocessError, OSError) as error:
                raise BenchError(f"the cluster refuses a job: {_last_line(str(error))}") from error
            self._submitted += 1
            self._jobs.append(_Job(batch, handle, specs))

    def _collect(self) -> None:
        """Take in the records that are there, and find the jobs that ended without theirs."""
        self._refresh()
        now = time.monotonic()
        # In this order: what a job wrote before it ended is there once it has ended.
        for job in self._jobs:
            if job.ended is None and job.handle.done():
                job.ended = now
        present = {path.name for path in (self._folder / "records").iterdir()}
        for job in list(self._jobs):
            for spec in list(job.pending):
                path = record_path(self._folder, spec)
                if path.name in present:
                    self._ready.append(_record(path, spec))
                    job.pending.remove(spec)
            if job.ended is None or (job.pending and now - job.ended < _GRACE_SECONDS):
                continue
            self._jobs.remove(job)
            if job.pending:
                self._give_up(job)

    def _refresh(self) -> None:
        if self._jobs and time.monotonic() - self._state_at > _STATE_SECONDS:
            self._state_at = time.monotonic()
            self._jobs[0].handle.done(force_check=True)

    def _give_up(self, job: _Job) -> None:
        if (self._folder / "left" / job.batch.name).exists():
            # Out of time, or this process slept for longer than the lease: the runs are all right.
            self._backlog.put_back(job.pending)
            return
        self._keep_logs = True
        last = _last_line(job.handle.stderr() or "")
        state = str(job.handle.state).lower()
        why = f"{state}: {last}" if last else f"{state}, no message"
        if not any((self._folder / "started").iterdir()):
            raise BenchError(
                f"no job gets as far as training ({why}); its log lies in {self._folder / 'logs'}"
            )
        # The runs of a batch go in order: it was the first one that did not survive.
        lost, *rest = job.pending
        self._backlog.put_back(rest)
        self._ready.append(failed_record(lost, f"the job died ({why})"))


def _parameters(options: dict[str, str], device: str) -> tuple[str, dict[str, Any]]:
    """Return the cluster and submitit's parameters for the options of a user."""
    cluster = options.pop("cluster", "slurm")
    if cluster not in CLUSTERS:
        raise UsageError(f"cluster is {cluster!r}; submitit runs on {' or '.join(CLUSTERS)}")
    if cluster == "local":
        if options:
            raise UsageError(f"cluster=local takes no {', '.join(options)}; they belong to slurm")
        # A job may not be ended by submitit's own clock: that one is for SLURM to keep.
        return cluster, {"timeout_min": 60 * 24 * 365}
    if unknown := sorted(set(options) - set(_SLURM)):
        raise UsageError(
            f"submitit has no option {', '.join(unknown)}; choose from "
            f"{', '.join(('cluster', *_SLURM))} (sbatch reads all others from SBATCH_ variables)"
        )
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise BenchError(
            "this machine has no sbatch and srun; start it on a node that submits to SLURM, or try "
            "it out here: --executor-option cluster=local"
        )
    parameters: dict[str, Any] = {
        "name": "optim-bench",
        "cpus_per_task": 1,
        "timeout_min": DEFAULT_MINUTES,
        "mem_gb": DEFAULT_MEMORY_GB,
        **({} if device == "cpu" else {"slurm_gres": "gpu:1"}),
    }
    for key, text in options.items():
        name, kind = _SLURM[key]
        if kind is int and (not text.isdecimal() or int(text) < 1):
            unit = "minutes" if key == "time" else "GB"
            raise UsageError(f"{key} is {text!r}; it has to be a whole number of {unit}")
        parameters[name] = kind(text)
    return cluster, parameters


@contextlib.contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Start processes that Ctrl-C on this terminal does not reach: ending them is our work."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _record(path: Path, spec: RunSpec) -> RunRecord:
    """Read what a job wrote; its node may have another version of this package."""
    try:
        return checked_record(spec, RunRecord.from_json(read_json(path)))
    except (TypeError, ValueError, AttributeError) as error:
        return failed_record(spec, f"the job's answer is no record ({error})")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else ""
