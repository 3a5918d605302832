"""A rule for real tensors on a complex one: real and imaginary parts are entries of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optim_conformance.oracle._base import Rule, Slots


@dataclass(frozen=True)
class Pairs:
    """Steps a complex tensor as the real tensor of its parts, state included."""

    rule: Rule

    def init(self, p: NDArray[Any]) -> Slots:
        """Return the state before the first step, complex."""
        return _back(self.rule.init(_real(p)), p.shape)

    def step(self, p: Any, g: Any, s: Slots, *, t: int, lr: float) -> tuple[Any, Slots]:
        """Take step `t`."""
        parts = {k: _real(v) for k, v in s.items()}
        moved, new = self.rule.step(_real(p), _real(g), parts, t=t, lr=lr)
        return _back({"p": moved}, p.shape)["p"], _back(new, p.shape)


def _real(x: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(x).reshape(-1).view(np.float64)


def _back(slots: Slots, shape: tuple[int, ...]) -> Slots:
    return {k: v.view(np.complex128).reshape(shape) for k, v in slots.items()}
