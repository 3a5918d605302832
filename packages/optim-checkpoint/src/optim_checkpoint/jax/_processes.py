"""The processes of a JAX run, reached through its own collectives."""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from optim_checkpoint._errors import CheckpointError, CheckpointWriteError
from optim_checkpoint._peers import Team, alone


class JaxProcesses:
    """All processes that `jax.distributed.initialize` brought together."""

    def __init__(self) -> None:
        self.rank = jax.process_index()
        self.size = jax.process_count()

    def exchange(self, message: bytes) -> list[bytes]:
        """Give every process the messages of all, in the order of their ranks."""
        sizes = _gather(np.array([len(message)], np.int32)).reshape(-1).tolist()
        # Powers of two: the collective is compiled once per length.
        padded = np.zeros(1 << max(max(sizes) - 1, 1).bit_length(), np.uint8)
        padded[: len(message)] = np.frombuffer(message, np.uint8)
        rows = _gather(padded)
        return [row[:size].tobytes() for row, size in zip(rows, sizes, strict=True)]

    # JAX has no collective that gives one process alone what all have.
    gather = exchange


def _gather(value: Any) -> Any:
    return np.asarray(multihost_utils.process_allgather(value))


def spans_processes(*trees: Any) -> bool:
    """Say whether an array, or the sharding of a template, is spread over several processes."""
    for leaf in jax.tree.leaves(trees):
        sharding = getattr(leaf, "sharding", None)
        if sharding is not None and not sharding.is_fully_addressable:
            return True
    return False


def writers(step: object, *trees: Any) -> Team | None:
    """Return the processes that save together, or None where one saves alone."""
    if not spans_processes(*trees):
        return None
    return Team(JaxProcesses(), f"saving step {step}", CheckpointWriteError)


def readers(*trees: Any) -> Team:
    """Return the processes that restore together."""
    if not spans_processes(*trees):
        return alone()
    return Team(JaxProcesses(), "restoring", CheckpointError)
