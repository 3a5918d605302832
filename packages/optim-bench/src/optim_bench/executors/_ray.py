"""Runs on a Ray cluster: one actor with a worker process for each job.

The actor keeps its worker, and with it the frameworks and compiled programs, from run to run. It
gets a run only once it lives: with more jobs than the cluster has cores, those that wait for a core
hold nothing back.
"""

import contextlib
import importlib
import logging
import math
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optim_bench.errors import BenchError, UsageError, os_reason
from optim_bench.executors._backlog import Backlog, Group, group_of
from optim_bench.executors._base import checked_record, failed_record
from optim_bench.executors._devices import Placement, visible_gpus
from optim_bench.executors._process import CPU, ProcessExecutor
from optim_bench.records import RunRecord, RunSpec

# Records are a few kilobytes; Ray would take a third of the memory for them.
_OBJECT_STORE_BYTES = 100 * 2**20
_POLL_SECONDS = 5.0
_CONNECT_SECONDS = 10.0
_START_SECONDS = 120.0


class _Trainer:
    """The actor: a worker process of its own, with timeouts and failures as on one machine."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._executor = ProcessExecutor(**options, jobs=1, pinned=False)

    def ready(self) -> None:
        """Return, which is all the caller wants to know."""

    def run(self, spec: dict[str, Any]) -> dict[str, Any]:
        """Run a spec."""
        self._executor.submit(RunSpec.from_json(spec))
        return self._executor.wait().to_json()


@dataclass
class _Seat:
    actor: Any
    # What the actor works at: starting (no spec yet) or a run.
    busy: Any
    spec: RunSpec | None = None
    group: Group | None = None


class RayExecutor:
    """The executor for a Ray cluster, or for one that it starts on this machine.

    Args:
        trainer: `"module:function"` to run.
        jobs: actors with one core each, at least 1.
        data_dir: where full-size data sets lie; the nodes have to see it.
        timeout: seconds after which a run is given up, or None.
        path: folders to add to the workers' module search path; the nodes have to see them.
        options: `address` of a running cluster ("auto" on one of its nodes). Without it a cluster
            of this machine alone starts, on the loopback interface and without a dashboard.
        placement: which device the runs are on. Ray gives an actor its share of a GPU.

    Raises:
        BenchError: an option is wrong, or the cluster cannot be reached.
    """

    def __init__(
        self,
        trainer: str,
        *,
        jobs: int,
        data_dir: Path | None = None,
        timeout: float | None = None,
        path: Sequence[str] = (),
        options: Mapping[str, str] | None = None,
        placement: Placement = CPU,
    ) -> None:
        if jobs < 1:
            raise ValueError(f"jobs is {jobs}; at least one actor has to run")
        # Ray hides the other GPUs from an actor, so its worker calls its own one "cuda".
        share = 1 / placement.jobs_per_device if placement.kind == "cuda" else 0
        self._needs = {"num_cpus": 1, **({"num_gpus": share} if share else {})}
        given = dict(options or {})
        address = given.pop("address", None)
        if given:
            raise UsageError(f"ray has no option {', '.join(sorted(given))}; it takes address")
        if address is not None:
            _check_address(address)
        self._options = {
            "trainer": trainer,
            "data_dir": None if data_dir is None else data_dir.resolve(),
            "timeout": timeout,
            "path": list(path),
            "placement": Placement(placement.kind),
        }
        self._most = jobs
        self._backlog = Backlog()
        self._seats: list[_Seat] = []
        self._started = False
        self._address = address
        self._since = math.inf
        # A session that the caller opened is the caller's to close.
        self._ray = _import_ray(address)
        self._ours = not self._ray.is_initialized()
        if self._ours:
            _connect(self._ray, address, jobs, len(visible_gpus()) if share else 0)

    def submit(self, spec: RunSpec) -> None:
        """Queue a run; it starts as soon as an actor is free."""
        self._backlog.add(spec)

    def wait(self) -> RunRecord:
        """Return the next finished record.

        Raises:
            BenchError: no actor even starts.
        """
        while True:
            self._dispatch()
            if not self._backlog and not any(seat.spec for seat in self._seats):
                raise RuntimeError("nothing is queued")
            self._check_start()
            waiting = {seat.busy: seat for seat in self._seats if seat.busy is not None}
            done, _ = self._ray.wait(list(waiting), num_returns=1, timeout=_POLL_SECONDS)
            for reference in done:
                record = self._settle(waiting[reference], reference)
                if record is not None:
                    self._dispatch()
                    return record

    def withdraw(self, keys: Collection[str]) -> list[str]:
        """Forget queued runs that have not started."""
        return self._backlog.withdraw(keys)

    def close(self) -> None:
        """Stop the actors and forget what is queued."""
        self._backlog.clear()
        for seat in self._seats:
            with contextlib.suppress(Exception):
                self._ray.kill(seat.actor)
        self._seats.clear()
        if self._ours and self._ray.is_initialized():
            self._ray.shutdown()

    def _check_start(self) -> None:
        """Give up on a cluster of our own that starts nothing; another's may be busy for hours."""
        if self._started or not self._ours or self._address is not None:
            return
        if self._seats and time.monotonic() - self._since > _START_SECONDS:
            folder = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
            raise BenchError(
                f"no Ray actor starts within {_START_SECONDS:g} s; the newest logs below "
                f"{folder / 'ray'} say why"
            )

    def _dispatch(self) -> None:
        for seat in self._seats:
            if seat.busy is None and self._backlog:
                others = [other.group for other in self._seats if other is not seat]
                seat.spec = self._backlog.take(seat.group, others)
                seat.group = group_of(seat.spec)
                seat.busy = seat.actor.run.remote(seat.spec.to_json())
        starting = sum(seat.busy is not None and seat.spec is None for seat in self._seats)
        while len(self._seats) < self._most and starting < len(self._backlog):
            # A run that dies may have been paid for; it is never started twice.
            actor = self._ray.remote(**self._needs, max_restarts=0)(_Trainer).remote(self._options)
            self._seats.append(_Seat(actor, actor.ready.remote()))
            self._since = min(self._since, time.monotonic())
            starting += 1

    def _settle(self, seat: _Seat, reference: Any) -> RunRecord | None:
        """Take in what an actor gave: a record, word that it lives, or its death."""
        spec, seat.spec, seat.busy = seat.spec, None, None
        try:
            answer = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            self._seats.remove(seat)
            why = f"{type(error).__name__}: {_sentence(error)}"
            if spec is None:
                if not self._started:
                    raise BenchError(f"no Ray actor starts ({why})") from error
                return None
            return failed_record(spec, f"the actor died ({why})")
        self._started = True
        if spec is None:
            return None
        try:
            return checked_record(spec, RunRecord.from_json(answer))
        except (TypeError, ValueError, AttributeError) as error:
            # The actor's node may have another version of this package.
            return failed_record(spec, f"the actor's answer is no record ({error})")


def _check_address(address: str) -> None:
    """Try the address before Ray does, which takes minutes where nobody answers.

    Raises:
        BenchError: it is no address, or nobody answers.
    """
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if "/" in host or not host or not port.isdecimal():
        raise BenchError(f"address is {address!r}; write host:port of the head node, or auto on it")
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise BenchError(f"no Ray cluster answers at {address} ({os_reason(error)})") from error


def _import_ray(address: str | None) -> Any:
    """Import Ray under the settings that it reads when it is imported."""
    # The hook would start every worker with `uv run`, in an environment of its own making.
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None:
        # What Ray does by itself where a firewall would ask: every server on loopback alone.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    return importlib.import_module("ray")


def _connect(ray: Any, address: str | None, jobs: int, gpus: int) -> None:
    local = {
        "num_cpus": jobs,
        "num_gpus": gpus,
        "include_dashboard": False,
        "object_store_memory": _OBJECT_STORE_BYTES,
    }
    logging.getLogger("ray").setLevel(logging.ERROR)
    with _own_signals():
        try:
            ray.init(
                address=address or "local",
                log_to_driver=False,
                configure_logging=False,
                **({} if address else local),
            )
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            where = f"the Ray cluster at {address}" if address else "a Ray cluster on this machine"
            raise BenchError(f"cannot start or reach {where} ({_sentence(error)})") from error


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Keep the caller's handler: Ray's own ends the process before its runs are accounted for."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _sentence(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else "no message"
