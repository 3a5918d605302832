"""Runs in worker processes, one pinned core each.

Own processes rather than a `ProcessPoolExecutor`: there one dead worker breaks the whole pool and
nobody learns which run killed it. Here it costs its run alone, and a fresh worker takes its place.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import IO

from optim_bench.executors._backlog import Backlog, Group, group_of
from optim_bench.executors._base import DEFAULT_TRAINER, checked_record, failed_record
from optim_bench.executors._devices import (
    Placement,
    available_cores,
    visible_gpus,
    worker_environment,
)
from optim_bench.records import RunRecord, RunSpec

CPU = Placement()
_POLL_SECONDS = 0.5
_FAREWELL_SECONDS = 2.0
# Even SIGKILL does not reach a process that waits for a device or a file server.
_END_SECONDS = 5.0
# As much of a dead worker's log as can hold its last line.
_LOG_TAIL_BYTES = 1 << 16


class ProcessExecutor:
    """The executor for one machine.

    Args:
        trainer: `"module:function"` to run.
        jobs: number of workers, at least 1.
        data_dir: where full-size data sets lie.
        timeout: seconds after which a run is given up, or None.
        path: folders to add to the workers' module search path, for user modules.
        pinned: whether each worker is bound to a core of its own. A cluster that hands out cores
            binds the workers itself, and two of its jobs on one machine know nothing of each other.
        placement: which device the runs are on. Workers take the machine's in turn.
        gpus: the machine's, by the names that the driver takes; by default those it shows.

    Raises:
        ValueError: `jobs` is below 1.
        BenchError: there is no such device.
    """

    def __init__(
        self,
        trainer: str = DEFAULT_TRAINER,
        *,
        jobs: int,
        data_dir: Path | None = None,
        timeout: float | None = None,
        path: Sequence[str] = (),
        pinned: bool = True,
        placement: Placement = CPU,
        gpus: Sequence[str] | None = None,
    ) -> None:
        if jobs < 1:
            raise ValueError(f"jobs is {jobs}; at least one worker has to run")
        cores = available_cores() if pinned else [None]
        self._start = {
            "trainer": trainer,
            "data_dir": None if data_dir is None else str(data_dir.resolve()),
            "path": list(path),
            "device": placement.kind,
        }
        self._environments = placement.environments(visible_gpus() if gpus is None else gpus)
        self._timeout = timeout
        self._backlog = Backlog()
        self._done: queue.Queue[tuple[_Worker, str | None]] = queue.Queue()
        # More workers than cores share them in turn.
        self._slots = [cores[index % len(cores)] for index in range(jobs)]
        self._workers: dict[int, _Worker] = {}

    def submit(self, spec: RunSpec) -> None:
        """Queue a run; it starts as soon as a worker is free."""
        self._backlog.add(spec)

    def wait(self) -> RunRecord:
        """Return the next finished record."""
        self._dispatch()
        if not any(worker.spec for worker in self._workers.values()):
            raise RuntimeError("nothing is queued")
        while True:
            # Before anything else: where others answer all the time, the queue is never empty.
            if late := self._late():
                return self._give_up(late, f"gave up after {self._timeout:g} s")
            if gone := self._gone():
                return self._give_up(gone, gone.last_words())
            try:
                worker, line = self._done.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                continue
            if worker.spec is None or self._workers.get(worker.slot) is not worker:
                continue  # the end of a worker that was already dealt with
            if line is None:
                return self._give_up(worker, worker.last_words())
            spec, worker.spec = worker.spec, None
            self._dispatch()
            try:
                return checked_record(spec, RunRecord.from_json(json.loads(line)))
            except (TypeError, ValueError) as error:
                return failed_record(spec, f"the worker's answer is no record ({error})")

    def withdraw(self, keys: Collection[str]) -> list[str]:
        """Forget queued runs that have not started."""
        return self._backlog.withdraw(keys)

    def close(self) -> None:
        """Stop the workers and forget what is queued."""
        self._backlog.clear()
        for worker in self._workers.values():
            worker.stop()
        self._workers.clear()

    def _dispatch(self) -> None:
        for slot, core in enumerate(self._slots):
            if not self._backlog:
                return
            worker = self._workers.get(slot)
            if worker is not None and worker.spec is None and not worker.alive():
                worker.stop()  # it ended while it had nothing to do, and no run may pay for that
                worker = None
            if worker is None:
                start = {**self._start, "core": core}
                environment = self._environments[slot % len(self._environments)]
                worker = self._workers[slot] = _Worker(slot, start, environment, self._done)
            if worker.spec is None:
                others = [w.group for w in self._workers.values() if w is not worker]
                worker.send(self._backlog.take(worker.group, others))

    def _late(self) -> "_Worker | None":
        if self._timeout is None:
            return None
        now = time.monotonic()
        for worker in self._workers.values():
            overdue = worker.spec is not None and now - worker.since > self._timeout
            if worker.still("overdue", overdue and not self._heard(worker)):
                return worker
        return None

    def _gone(self) -> "_Worker | None":
        """Find a worker that is dead although a process of its own making holds its pipe open."""
        for worker in self._workers.values():
            dead = worker.spec is not None and not worker.alive()
            if worker.still("dead", dead and not self._heard(worker)):
                return worker
        return None

    def _heard(self, worker: "_Worker") -> bool:
        """Say whether word of a worker is here already, behind that of others."""
        with self._done.mutex:
            return any(other is worker for other, _ in self._done.queue)

    def _give_up(self, worker: "_Worker", why: str) -> RunRecord:
        spec = worker.spec
        assert spec is not None  # noqa: S101 - callers checked it; this tells the type checker
        if not worker.stop():
            why = (
                f"{why}; its process {worker.pid} does not end, even by SIGKILL, and is left behind"
            )
        del self._workers[worker.slot]
        self._dispatch()
        return failed_record(spec, why)


class _Worker:
    """One process, the run it is at, and the thread that listens to it."""

    def __init__(
        self,
        slot: int,
        start: dict[str, object],
        environment: Mapping[str, str],
        done: "queue.Queue[tuple[_Worker, str | None]]",
    ) -> None:
        self.slot = slot
        self.spec: RunSpec | None = None
        self.group: Group | None = None
        self.since = 0.0
        self._seen: dict[str, float] = {}
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in stop
        self._process = subprocess.Popen(
            [sys.executable, "-m", "optim_bench.executors._worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=worker_environment(os.environ) | dict(environment),
            text=True,
            encoding="utf-8",
            # Ctrl-C is the parent's to handle.
            start_new_session=True,
        )
        self._write(json.dumps(start))
        self._listener = threading.Thread(target=self._listen, args=(done,), daemon=True)
        self._listener.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def alive(self) -> bool:
        """Say whether the process runs, and leave a dead one to `stop`.

        Once it is reaped, its number may be that of another process and its group.
        """
        if not hasattr(os, "waitid"):
            return self._process.poll() is None
        look = os.WEXITED | os.WNOHANG | os.WNOWAIT
        try:
            return os.waitid(os.P_PID, self.pid, look) is None
        except ChildProcessError:  # this program ignores SIGCHLD: the system reaps at once
            return False

    def still(self, name: str, holds: bool) -> bool:
        """Say whether something has held for a while, in which an answer under way gets here.

        After Ctrl-Z, for example, every run looks overdue, and the answers lie in the pipes.
        """
        if not holds:
            self._seen.pop(name, None)
            return False
        now = time.monotonic()
        return now - self._seen.setdefault(name, now) > _POLL_SECONDS

    def send(self, spec: RunSpec) -> None:
        self.spec, self.group, self.since = spec, group_of(spec), time.monotonic()
        self._write(json.dumps(spec.to_json()))

    def last_words(self) -> str:
        """Say how the worker ended, with the last line it wrote."""
        deadline = time.monotonic() + _END_SECONDS
        while self.alive():
            if time.monotonic() > deadline:
                return "the worker closed its pipe and does not end"
            time.sleep(0.01)
        self._kill()
        code = self._process.wait()
        how = f"signal {_signal_name(-code)}" if code < 0 else f"exit status {code}"
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - _LOG_TAIL_BYTES))
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return f"the worker died ({how}: {lines[-1]})" if lines else f"the worker died ({how})"

    def stop(self) -> bool:
        """End the process and say whether it did end."""
        with contextlib.suppress(OSError):
            if self._process.stdin:
                self._process.stdin.close()
        self._kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)
        # A daemon that a run left behind may still hold the pipe; nobody waits for that.
        self._listener.join(_FAREWELL_SECONDS)
        self._log.close()
        return self._process.returncode is not None

    def _kill(self) -> None:
        """End the process with all that it started, which would hold its pipe open.

        A worker at rest has nothing to lose: its records are written.
        """
        if self._process.returncode is not None:
            return
        with contextlib.suppress(OSError):
            if hasattr(os, "killpg"):
                os.killpg(self.pid, signal.SIGKILL)
            else:
                self._process.kill()

    def _write(self, line: str) -> None:
        # A dead worker's pipe is broken; the listener reports the death.
        with contextlib.suppress(BrokenPipeError):
            assert self._process.stdin is not None  # noqa: S101 - opened as a pipe above
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def _listen(self, done: "queue.Queue[tuple[_Worker, str | None]]") -> None:
        assert self._process.stdout is not None  # noqa: S101 - opened as a pipe above
        with self._process.stdout as lines:
            for line in lines:
                if line.endswith("\n"):  # else it died while it wrote
                    done.put((self, line))
        done.put((self, None))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most of the real-time signals have none
        return str(number)
