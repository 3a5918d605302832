"""What the training loop asks of a framework."""

import importlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from optim_bench.optimizers import OptimizerInfo
from optim_bench.workloads import Array, Workload

# At most so many steps between two looks at the losses: keeps buffers small and a diverged run
# short.
CHUNK = 32
# At most so many examples in one evaluation call.
EVALUATION_SLICE = 2000
# What no parameter's shape says about the transformer.
HEADS = 4
NORM_EPS = 1e-5


class Session(Protocol):
    """Live parameters and optimizer state of one run."""

    def advance(self, inputs: Array, targets: Array, rates: Sequence[float]) -> Array:
        """Take one step per entry of `rates` and return the loss of each batch before its step."""
        ...

    def evaluate(self, inputs: Array, targets: Array) -> tuple[float, float]:
        """Return mean loss and accuracy of at most `EVALUATION_SLICE` examples.

        The accuracy is 0 where the targets are no classes.
        """
        ...

    def parameter_sizes(self) -> list[tuple[int, int]]:
        """Return (entries, bytes) for each parameter."""
        ...

    def state_bytes(self) -> int:
        """Return the exact size of everything that the optimizer keeps between steps."""
        ...


def open_session(
    workload: Workload,
    info: OptimizerInfo,
    hyperparameters: Mapping[str, Any],
    initial: Mapping[str, Array],
    device: str = "cpu",
    seed: int = 0,
) -> AbstractContextManager[Session]:
    """Open a run in the optimizer's framework, which is imported now and not before.

    Args:
        workload: what is trained.
        info: the optimizer.
        hyperparameters: complete, as `info.validate` returns them.
        initial: the parameters to start from, as `Task.initial` gives them.
        device: a name that the framework understands.
        seed: what the global generators of NumPy, `random` and PyTorch start from while the session
            is open; the caller's are given back when it closes.
    """
    backend = importlib.import_module(f"optim_bench.train._{info.framework}")
    return backend.session(workload, info, hyperparameters, initial, device, seed)
