"""Tasks over fixed arrays: every epoch is a new permutation of the training examples."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from optim_bench.tasks.built_in._workload import Array, generator


def epoch_order(rng: np.random.Generator, examples: int, batch: int) -> Iterator[Array]:
    """Yield index batches for ever: each example once per epoch, epochs run into each other.

    Example:
        >>> order = epoch_order(np.random.default_rng(0), examples=4, batch=3)
        >>> first = np.concatenate([next(order) for _ in range(4)])
        >>> [int(n) for n in np.bincount(first)]
        [3, 3, 3, 3]
    """
    pool = np.empty(0, np.int64)
    while True:
        while len(pool) < batch:
            pool = np.concatenate([pool, rng.permutation(examples)])
        yield pool[:batch]
        pool = pool[batch:]


@dataclass(frozen=True)
class SampledTask:
    """A supervised task whose splits fit in memory.

    Args:
        splits: `(inputs, targets)` of "train", "val" and "test".
        batch: examples per step.
        parameters: draws the initial parameters.
        judged_on: at most this many examples of each split are evaluated, the first ones.
    """

    splits: Mapping[str, tuple[Array, Array]]
    batch: int
    parameters: Callable[[np.random.Generator], dict[str, Array]]
    judged_on: int = 10_000

    def __post_init__(self) -> None:
        """Close the arrays against writing: tasks are cached, and serve them without a copy."""
        for arrays in self.splits.values():
            for array in arrays:
                array.flags.writeable = False

    def initial(self, seed: int) -> dict[str, Array]:
        """Return the initial parameters of a seed."""
        return self.parameters(generator(seed, "init"))

    def chunks(self, seed: int, sizes: Iterable[int]) -> Iterator[tuple[Array, Array]]:
        """Yield consecutive steps as `(inputs, targets)` with the axes (step, example, …)."""
        inputs, targets = self.splits["train"]
        order = epoch_order(generator(seed, "order"), len(inputs), self.batch)
        for size in sizes:
            rows = np.stack([next(order) for _ in range(size)])
            yield inputs[rows], targets[rows]

    def evaluation(self, split: str, seed: int, step: int) -> tuple[Array, Array]:
        """Return the examples on which a split is judged: the same for every seed and step."""
        inputs, targets = self.splits[split]
        return inputs[: self.judged_on], targets[: self.judged_on]
