"""What the training loop asks of a framework."""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from optim_bench.optimizers import OptimizerInfo
from optim_bench.tasks import MOST_PER_CALL, Task
from optim_bench.tasks.built_in import Array

# At most so many steps between two looks at the losses: keeps buffers small and a diverged run
# short.
CHUNK = MOST_PER_CALL


class Session(Protocol):
    """Live parameters and optimizer state of one run.

    Attributes:
        batches: what the next steps train on.
        start: digests of the initial parameters and, after the first step, of the first batch.
    """

    batches: Iterator[Any]
    start: Mapping[str, str]

    def advance(self, rates: Sequence[float]) -> Array:
        """Take one step per entry of `rates` and return the loss of each batch before its step.

        Raises:
            TaskError: the batches end, or the loss is no scalar.
        """
        ...

    def evaluate(self, split: str, step: int) -> dict[str, float]:
        """Return what the task measures on a split after `step` steps.

        Raises:
            TaskError: the task returns something else than numbers, or lacks what is judged.
        """
        ...

    def parameter_sizes(self) -> list[tuple[int, int]]:
        """Return (entries, bytes) for each parameter."""
        ...

    def state_bytes(self) -> int:
        """Return the exact size of everything that the optimizer keeps between steps."""
        ...


def open_session(
    task: Task,
    info: OptimizerInfo,
    hyperparameters: Mapping[str, Any],
    seed: int = 0,
    device: str = "cpu",
) -> AbstractContextManager[Session]:
    """Open a run in the task's framework, which is imported now and not before.

    Args:
        task: what is trained.
        info: the optimizer.
        hyperparameters: complete, as `info.validate` returns them.
        seed: of the initial parameters and the batches; and what the global generators of NumPy,
            `random` and PyTorch start from while the session is open. The caller's are given back
            when it closes.
        device: a name that the framework understands.
    """
    backend = importlib.import_module(f"optim_bench.train._{task.framework}")
    return backend.session(task, info, hyperparameters, seed, device)
