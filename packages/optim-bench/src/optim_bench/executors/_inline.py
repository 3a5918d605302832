"""Runs in this process, one after the other: for debugging, and for the smallest comparisons."""

from collections import deque
from collections.abc import Collection
from pathlib import Path

from optim_bench.executors._base import DEFAULT_TRAINER, load_trainer, run_spec
from optim_bench.records import RunRecord, RunSpec


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
