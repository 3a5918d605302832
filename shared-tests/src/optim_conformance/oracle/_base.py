"""What the rules of the oracle share: the types, and a mean that is defined for no entries."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Leaf = NDArray[Any] | np.floating[Any] | np.complexfloating[Any, Any]
"""A tensor or a per-tensor scalar, in float64 or complex128."""

Slots = dict[str, Any]
"""The state of one tensor: slot to array or scalar."""


class Rule(Protocol):
    """One optimizer's arithmetic for one tensor."""

    def init(self, p: NDArray[Any]) -> Slots:
        """Return the state before the first step."""
        ...

    def step(self, p: Any, g: Any, s: Slots, *, t: int, lr: float) -> tuple[Any, Slots]:
        """Return parameters and state after step `t`, counted from 1."""
        ...


def mean(x: Any) -> Any:
    """Return the mean over all entries, 0 where there are none.

    Example:
        >>> float(mean(np.array([1.0, 4.0]))), float(mean(np.zeros((0, 3))))
        (2.5, 0.0)
    """
    return x.mean() if x.size else x.dtype.type(0)
