r"""STAC's sign section and Lion for one tensor, in float64.

STAC:

    (1) m = sm m + (1 - sm) g
    (2) p = p (1 - lr_s wd_s) - lr_s sign(m),   lr_s = sign_lr_scale lr,   sign(nan) = nan

With sm = 0 this is signSGD and holds no state. Lion is the limit that it is held to:

    (3) p = p (1 - lr wd) - lr sign(b1 m + (1 - b1) g)
    (4) m = b2 m + (1 - b2) g
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from optim_conformance.oracle._base import Leaf, Slots


@dataclass(frozen=True)
class Sign:
    """The sign section."""

    sign_momentum: float = 0.9
    sign_lr_scale: float = 1.0
    weight_decay: float = 0.0
    maximize: bool = False

    def init(self, p: Leaf) -> Slots:
        """Return the state before the first step: none without momentum."""
        return {"mu": np.zeros_like(p)} if self.sign_momentum else {}

    def momentum(self, g: Leaf, s: Slots) -> Leaf:
        """Return m by (1)."""
        if not self.sign_momentum:
            return g
        return self.sign_momentum * s["mu"] + (1 - self.sign_momentum) * g

    def step(self, p: Leaf, g: Leaf, s: Slots, *, t: int, lr: float) -> tuple[Leaf, Slots]:
        """Take step `t`."""
        m = self.momentum(-g if self.maximize else g, s)
        lr_s = self.sign_lr_scale * lr
        p = p * (1 - lr_s * self.weight_decay) - lr_s * np.sign(m)  # (2)
        return p, ({"mu": m} if self.sign_momentum else {})


@dataclass(frozen=True)
class Lion:
    """Lion, for the limit test."""

    b1: float = 0.9
    b2: float = 0.99
    weight_decay: float = 0.0

    def init(self, p: Leaf) -> Slots:
        """Return the state before the first step."""
        return {"mu": np.zeros_like(p)}

    def step(self, p: Leaf, g: Leaf, s: Slots, *, t: int, lr: float) -> tuple[Leaf, Slots]:
        """Take step `t`."""
        direction = np.sign(self.b1 * s["mu"] + (1 - self.b1) * g)
        p = p * (1 - lr * self.weight_decay) - lr * direction  # (3)
        return p, {"mu": self.b2 * s["mu"] + (1 - self.b2) * g}  # (4)
