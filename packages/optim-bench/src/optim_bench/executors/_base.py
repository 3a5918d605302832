"""The contract of an executor, and what it runs.

A trainer is named as `"module:function"` rather than passed as an object, because worker processes
and cluster jobs have to find it again. It takes a `RunSpec` and the data folder, and returns a
`RunRecord`.
"""

import importlib
import json
from collections import deque
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Protocol

from optim_bench.records import REQUIRED_METRICS, RunRecord, RunSpec

Trainer = Callable[..., RunRecord]
DEFAULT_TRAINER = "optim_bench.executors.train:train"


class Executor(Protocol):
    """Runs specs, in any order, and gives each record back once.

    A trainer that raises, a worker that dies and a run that takes too long all give a record with
    the status `"failed"`; no executor raises for them.
    """

    def submit(self, spec: RunSpec) -> None:
        """Queue a run."""
        ...

    def wait(self) -> RunRecord:
        """Return the next finished record.

        Raises:
            RuntimeError: nothing is queued or running.
        """
        ...

    def withdraw(self, keys: Collection[str]) -> list[str]:
        """Forget the queued runs of these keys that have not started, and return their keys."""
        ...

    def close(self) -> None:
        """Stop what runs, forget what is queued and free everything. Safe to call twice."""
        ...


def load_trainer(reference: str) -> Trainer:
    """Import `"module:function"`."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


def run_spec(
    trainer: Trainer, spec: RunSpec, data_dir: Path | None, device: str = "cpu"
) -> RunRecord:
    """Run one spec; whatever the trainer raises becomes a failed record."""
    # A trainer that knows the CPU alone need not take a device.
    where = {} if device == "cpu" else {"device": device}
    try:
        return checked_record(spec, trainer(spec, data_dir=data_dir, **where))
    # Not the others of BaseException: Ctrl-C is for the comparison.
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a broken run ends itself alone
        return failed_record(spec, f"{type(error).__name__}: {error}")


def checked_record(spec: RunSpec, record: RunRecord) -> RunRecord:
    """Return a record, or a failed one where it is not of the spec that was asked for."""
    if record.spec.key() == spec.key():
        return record
    asked, given = (
        {name: json.dumps(value, sort_keys=True) for name, value in each.to_json().items()}
        for each in (spec, record.spec)
    )
    wrong = [
        f"{name} is {given[name]}, not {text}"
        for name, text in asked.items()
        if given[name] != text
    ]
    return failed_record(
        spec,
        f"the answer is of another run ({', '.join(wrong)}); a trainer has to return the spec that "
        "it is given",
    )


def failed_record(spec: RunSpec, message: str) -> RunRecord:
    """Return the record of a run that gave no result.

    Args:
        spec: what was asked for.
        message: why; only its first line is kept.
    """
    lines = message.strip().splitlines()
    return RunRecord(
        spec=spec,
        status="failed",
        metrics=dict.fromkeys(REQUIRED_METRICS),
        curve={"step": [], "train_loss": [], "val_loss": []},
        parameters=0,
        parameter_bytes=0,
        state_bytes=0,
        seconds={},
        environment={},
        error=lines[0] if lines else "no message",
    )


class InlineExecutor:
    """The executor without processes.

    Args:
        trainer: `"module:function"` to run.
        data_dir: where full-size data sets lie.
        device: where the runs are.
    """

    def __init__(
        self,
        trainer: str = DEFAULT_TRAINER,
        *,
        data_dir: Path | None = None,
        device: str = "cpu",
    ) -> None:
        self._trainer = load_trainer(trainer)
        self._data_dir = data_dir
        self._device = device
        self._queue: deque[RunSpec] = deque()

    def submit(self, spec: RunSpec) -> None:
        """Queue a run."""
        self._queue.append(spec)

    def wait(self) -> RunRecord:
        """Run the next spec and return its record."""
        if not self._queue:
            raise RuntimeError("nothing is queued")
        return run_spec(self._trainer, self._queue.popleft(), self._data_dir, self._device)

    def withdraw(self, keys: Collection[str]) -> list[str]:
        """Forget queued runs."""
        gone = [key for spec in self._queue if (key := spec.key()) in keys]
        self._queue = deque(spec for spec in self._queue if spec.key() not in gone)
        return gone

    def close(self) -> None:
        """Forget what is queued."""
        self._queue.clear()
