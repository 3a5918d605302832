r"""STAMLite for one tensor, in float64.

    (1) e1    = md e1 + (1 - md) mean(g)
    (2) e2    = md e2 + (1 - md) mean(g^2);   c = 1 - md^t
    (3) var   = max(e2/c - (e1/c)^2, 0)
    (4) z     = var / (e2/c + eps)
    (5) every k steps (t = 1, k+1, 2k+1, ...): beta1 = clip(b1 (1 - a z/(1+z)), b1_min, b1)
    (6) m     = beta1 m + (1 - beta1) g
    (7) P     = P beta1
    (8) p     = p (1 - lr wd) - lr (m/(1-P)) / (sqrt(e2/c + eps_root) + eps)

A statistic that would not be finite keeps its last value; a beta1 due on that step is b1. While e2
is 0 there is no scale to divide by, and the fraction of (8) is 0, nan where m is not finite.
Parity with the published package: eps is added to c in (4) and (8), and to 1-P; the fraction of (8)
is taken without a scale, too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from optim_conformance.oracle._base import Leaf, Slots, mean
from optim_conformance.oracle._stam import beta1_of, hold


@dataclass(frozen=True)
class StamLite:
    """The rule with the published defaults."""

    b1_base: float = 0.9
    eps: float = 1e-8
    eps_root: float = 0.0
    weight_decay: float = 0.01
    adapt_strength: float = 0.2
    moment_decay: float = 0.99
    beta1_update_interval: int = 5
    parity: str | None = None

    def init(self, p: Leaf) -> Slots:
        """Return the state before the first step; e1 is complex for a complex tensor."""
        return {
            "mu": np.zeros_like(p),
            "e1": p.dtype.type(0.0),
            "e2": np.float64(0.0),
            "beta1": np.float64(self.b1_base),
            "b1_prod": np.float64(1.0),
        }

    def moments(self, g: Leaf, s: Slots) -> tuple[Leaf, Leaf]:
        """Return the candidates of (1) and (2), finite or not."""
        e1 = self.moment_decay * s["e1"] + (1 - self.moment_decay) * mean(g)
        e2 = self.moment_decay * s["e2"] + (1 - self.moment_decay) * mean(np.abs(g) ** 2)
        return e1, e2

    def correction(self, t: int) -> float:
        """Return c of (2)."""
        return 1 - self.moment_decay**t + (self.eps if self.parity else 0.0)

    def due(self, t: int) -> bool:
        """Tell whether beta1 is computed anew on step `t`, the condition of (5)."""
        return (t - 1) % self.beta1_update_interval == 0

    def beta1(self, e1: Leaf, e2: Leaf, t: int) -> Leaf:
        """Return beta1 by (3), (4) and (5), b1 where z is not finite."""
        c = self.correction(t)
        var = np.maximum(e2 / c - np.abs(e1 / c) ** 2, 0.0)
        z = var / (e2 / c + self.eps)
        if not np.isfinite(z):
            return np.float64(self.b1_base)
        return beta1_of(z, self.b1_base, self.adapt_strength)

    def direction(self, s: Slots, t: int) -> Leaf:
        """Return the fraction of (8)."""
        if s["e2"] == 0 and not self.parity:
            return s["mu"] * 0.0
        m_hat = s["mu"] / (1 - s["b1_prod"] + (self.eps if self.parity else 0.0))
        return m_hat / (np.sqrt(s["e2"] / self.correction(t) + self.eps_root) + self.eps)

    def step(self, p: Leaf, g: Leaf, s: Slots, *, t: int, lr: float) -> tuple[Leaf, Slots]:
        """Take step `t`."""
        e1, e2 = self.moments(g, s)  # (1), (2)
        beta1 = self.beta1(e1, e2, t) if self.due(t) else s["beta1"]  # (3), (4), (5)
        new: Slots = {
            "mu": beta1 * s["mu"] + (1 - beta1) * g,  # (6)
            "e1": hold(e1, s["e1"]),
            "e2": hold(e2, s["e2"]),
            "beta1": beta1,
            "b1_prod": s["b1_prod"] * beta1,  # (7)
        }
        return p * (1 - lr * self.weight_decay) - lr * self.direction(new, t), new  # (8)
