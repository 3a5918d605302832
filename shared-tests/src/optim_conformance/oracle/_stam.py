r"""STAM for one tensor, in float64.

    (1) r     = g - m
    (2) s2    = b2 s2 + (1 - b2) mean(r^2)
    (3) tau   = td tau + (1 - td) mean(|r|)
    (4) z     = min(s2, threshold (tau^2 + veps)) / (tau^2 + veps)
    (5) beta1 = clip(b1 (1 - a z/(1+z)), b1_min, b1),   b1_min = min(b1, max(0.5, b1 (1 - a)))
    (6) m     = beta1 m + (1 - beta1) g
    (7) v     = b2 v + (1 - b2) g^2
    (8) P     = P beta1
    (9) p     = p (1 - lr wd) - lr (m/(1-P)) / (sqrt(v/(1-b2^t) + eps_root) + eps)

    corrected, in place of (4):  s2' = s2/(1-b2^t),  tau' = tau/(1-td^t),
    (4') z    = s2' / (tau'^2 + s2'/threshold),   z = 0 where s2' = 0

A statistic that would not be finite keeps its last value; beta1 is then b1 for the step.
Sampled statistics take the means of (2) and (3) over every k-th entry, k = ceil(size/n); which even
sample it is the contract leaves open, and the checks too. Complex tensors enter (2), (3) and (7) by
their modulus.
Parity with the published package: above the threshold beta1 = b1, and eps is added to both bias
corrections.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from optim_conformance.oracle._base import Leaf, Slots, mean

PARITY = "stam-optimizer-0.1.0"


def hold(new: Leaf, old: Leaf) -> Leaf:
    """Return `new` where it is finite, else the last finite value."""
    return np.where(np.isfinite(new), new, old)


def b1_min(b1: float, a: float) -> float:
    """Return the lower bound of beta1, the second half of (5)."""
    return min(b1, max(0.5, b1 * (1 - a)))


def beta1_of(z: Leaf, b1: float, a: float) -> Leaf:
    """Return beta1 by (5)."""
    return np.clip(b1 * (1 - a * z / (1 + z)), b1_min(b1, a), b1)


@dataclass(frozen=True)
class Stam:
    """The rule with the published defaults."""

    b1_base: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    eps_root: float = 0.0
    weight_decay: float = 0.01
    adapt_strength: float = 0.2
    tau_decay: float = 0.99
    fallback_threshold: float = 100.0
    variance_eps: float = 1e-8
    statistics: str = "published"
    parity: str | None = None
    stat_sample: int | None = None

    def init(self, p: Leaf) -> Slots:
        """Return the state before the first step."""
        zero = np.float64(0.0)
        return {
            "mu": np.zeros_like(p),
            "nu": np.zeros(p.shape),
            "s2": zero,
            "tau": zero,
            "beta1": np.float64(self.b1_base),
            "b1_prod": np.float64(1.0),
        }

    def variance(self, r: Leaf, s: Slots) -> tuple[Leaf, Leaf]:
        """Return the candidates of (2) and (3), finite or not."""
        if self.stat_sample:
            r = np.ravel(r)[:: max(1, -(-np.size(r) // self.stat_sample))]
        s2 = self.b2 * s["s2"] + (1 - self.b2) * mean(np.abs(r) ** 2)
        tau = self.tau_decay * s["tau"] + (1 - self.tau_decay) * mean(np.abs(r))
        return s2, tau

    def ratio(self, s2: Leaf, tau: Leaf, t: int) -> Leaf:
        """Return z by (4), or by (4') with corrected statistics."""
        if self.statistics == "corrected":
            s2, tau = s2 / (1 - self.b2**t), tau / (1 - self.tau_decay**t)
            if s2 == 0:
                return np.float64(0.0)
            return s2 / (tau**2 + s2 / self.fallback_threshold)
        scale = tau**2 + self.variance_eps
        if self.parity:
            return s2 / scale
        return np.minimum(s2, self.fallback_threshold * scale) / scale

    def beta1(self, z: Leaf) -> Leaf:
        """Return beta1 by (5), b1 where z is not finite."""
        if not np.isfinite(z) or (self.parity and z > self.fallback_threshold):
            return np.float64(self.b1_base)
        return beta1_of(z, self.b1_base, self.adapt_strength)

    def second_moment(self, g: Leaf, s: Slots) -> Leaf:
        """Return v by (7)."""
        return self.b2 * s["nu"] + (1 - self.b2) * np.abs(g) ** 2

    def direction(self, s: Slots, t: int) -> Leaf:
        """Return the fraction of (9)."""
        extra = self.eps if self.parity else 0.0
        m_hat = s["mu"] / (1 - s["b1_prod"] + extra)
        v_hat = s["nu"] / (1 - self.b2**t + extra)
        return m_hat / (np.sqrt(v_hat + self.eps_root) + self.eps)

    def step(self, p: Leaf, g: Leaf, s: Slots, *, t: int, lr: float) -> tuple[Leaf, Slots]:
        """Take step `t`."""
        r = g - s["mu"]  # (1)
        s2, tau = self.variance(r, s)  # (2), (3)
        beta1 = self.beta1(self.ratio(s2, tau, t))  # (4), (5)
        new: Slots = {
            "mu": beta1 * s["mu"] + (1 - beta1) * g,  # (6)
            "nu": self.second_moment(g, s),  # (7)
            "s2": hold(s2, s["s2"]),
            "tau": hold(tau, s["tau"]),
            "beta1": beta1,
            "b1_prod": s["b1_prod"] * beta1,  # (8)
        }
        return p * (1 - lr * self.weight_decay) - lr * self.direction(new, t), new  # (9)
