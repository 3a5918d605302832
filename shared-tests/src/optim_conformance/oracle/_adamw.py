r"""AdamW for one tensor, in float64.

    (1) m = b1 m + (1 - b1) g
    (2) v = b2 v + (1 - b2) g^2
    (3) p = p (1 - lr wd) - lr (m/(1-b1^t)) / (sqrt(v/(1-b2^t)) + eps)

With amsgrad the largest v so far stands in (3) in place of v.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from optim_conformance.oracle._base import Leaf, Slots


@dataclass(frozen=True)
class AdamW:
    """The rule; the weight decay has no default that all libraries share, so it is 0 here."""

    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    amsgrad: bool = False
    maximize: bool = False

    def init(self, p: Leaf) -> Slots:
        """Return the state before the first step."""
        slots: Slots = {"mu": np.zeros_like(p), "nu": np.zeros_like(p)}
        if self.amsgrad:
            slots["nu_max"] = np.zeros_like(p)
        return slots

    def step(self, p: Leaf, g: Leaf, s: Slots, *, t: int, lr: float) -> tuple[Leaf, Slots]:
        """Take step `t`."""
        if self.maximize:
            g = -g
        new: Slots = {
            "mu": self.b1 * s["mu"] + (1 - self.b1) * g,  # (1)
            "nu": self.b2 * s["nu"] + (1 - self.b2) * np.square(g),  # (2)
        }
        v = new["nu"]
        if self.amsgrad:
            v = new["nu_max"] = np.maximum(s["nu_max"], v)
        direction = (new["mu"] / (1 - self.b1**t)) / (np.sqrt(v / (1 - self.b2**t)) + self.eps)
        return p * (1 - lr * self.weight_decay) - lr * direction, new  # (3)
