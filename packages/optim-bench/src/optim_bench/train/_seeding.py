"""The global generators of NumPy and `random`, lent to a run and given back."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the generators from a run's seed, and restore the caller's afterwards.

    Example:
        >>> with seeded(0):
        ...     inside = random.random()
        >>> with seeded(0):
        ...     print(random.random() == inside)
        True
    """
    ours, numpys = random.getstate(), np.random.get_state()  # noqa: NPY002 - users draw from it
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(ours)
        np.random.set_state(numpys)  # noqa: NPY002
