"""What the training loop asks of a framework."""

from collections.abc import Sequence
from typing import Protocol

from optim_bench.workloads import Array

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
