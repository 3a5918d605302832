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

from dataclasses import dataclass, replace

import numpy as np

from optim_conformance.cases import (
    COARSE,
    Case,
    constant,
    shift,
    sparse,
    tiny,
    warmup_decay,
    with_zeros,
)
from optim_conformance.ranges import NAN, NOT_NEGATIVE, OPEN, POSITIVE, at_least, choice, interval
from optim_conformance.rule import (
    MU,
    NU,
    Bug,
    Leaf,
    Limit,
    OptimizerRule,
    Slots,
    Step,
    mean,
    statistic,
)
from optim_conformance.rules.adamw import AdamW

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
class Stam(Step):
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

    def first_direction(self, g: Leaf) -> Leaf:
        """Return g over its own magnitude."""
        return g / (np.abs(g) + 1e-8)


class _EpsInsideRoot(Stam):
    """The epsilon stands inside the square root."""

    def direction(self, s: Slots, t: int) -> Leaf:
        m_hat = s["mu"] / (1 - s["b1_prod"])
        return m_hat / np.sqrt(s["nu"] / (1 - self.b2**t) + self.eps)


class _WrongDecayForTau(Stam):
    """The running scale decays with b2."""

    def variance(self, r: Leaf, s: Slots) -> tuple[Leaf, Leaf]:
        s2, _ = super().variance(r, s)
        return s2, self.b2 * s["tau"] + (1 - self.b2) * mean(np.abs(r))


class _NoResidual(Stam):
    """The variance is that of the gradient and not of the residual."""

    def variance(self, r: Leaf, s: Slots) -> tuple[Leaf, Leaf]:
        return super().variance(r + s["mu"], s)


_STATISTIC = "a float32 mean, then an average: its terms carry the cancellation of g - m"
_RATIO = "z is a ratio of two float32 statistics, damped by z/(1+z)"
BETA1 = statistic("beta1", 5e-7, _RATIO, idle=lambda t: 0.9, limits=(0.72, 0.9))
B1_PROD = statistic(
    "b1_prod", 5e-6, "24 factors that carry beta1's error each", idle=lambda t: 0.9**t
)

STRONG = {"learning_rate": 1e-2, "b1_base": 0.95, "adapt_strength": 0.5, "weight_decay": 0.1}
SHARED = {
    "learning_rate": POSITIVE,
    "b1_base": OPEN,
    "eps": NOT_NEGATIVE,
    "eps_root": NOT_NEGATIVE,
    "weight_decay": NOT_NEGATIVE,
    "adapt_strength": interval(0.0, 0.5, -0.125, 0.75, NAN),
    "parity": choice(None, PARITY, bad=("0.9.9",), capability="parity"),
}
"""Ranges that STAMLite has too."""

_QUICK = {"learning_rate": 3e-3, "b2": 0.9, "tau_decay": 0.8}
_FAST = {"learning_rate": 1e-2}
_CORRECTED = {"statistics": "corrected"}
_PARITY = {"parity": PARITY}
_RECORDED = {"learning_rate": 0.01, "b2": 0.9, "tau_decay": 0.8, "fallback_threshold": 1.5}

RULE = OptimizerRule(
    step=Stam,
    slots=(
        MU,
        replace(NU, wide=True, real=True),
        statistic("s2", 2e-6, _STATISTIC),
        statistic("tau", 1e-6, _STATISTIC),
        BETA1,
        B1_PROD,
    ),
    ranges={
        **SHARED,
        "b2": OPEN,
        "tau_decay": OPEN,
        "fallback_threshold": NOT_NEGATIVE.but(-2.0, NAN),
        "statistics": choice("published", "corrected", bad=("debiased",), capability="corrected"),
        "stat_sample": at_least(1, 0, -3, capability="stat_sample"),
    },
    cases=(
        Case("defaults"),
        Case("no-decay", {"weight_decay": 0.0, **_FAST}),
        Case("strong", STRONG),
        Case("limit-adamw", {"adapt_strength": 0.0, **_FAST}),
        Case("low-b1", {"b1_base": 0.4, "adapt_strength": 0.5}),
        Case("quick-statistics", _QUICK, shift),
        Case("low-threshold", {**_QUICK, "fallback_threshold": 1.2}, sparse),
        Case("sparse", _FAST, sparse, seed=1),
        Case("shift", _FAST, shift, seed=2),
        Case("constant", {}, constant),
        Case("tiny", {}, tiny),
        Case("large-eps", {"eps": 1e-2}, seed=3),
        Case("eps-root", {"eps_root": 1e-2, **_FAST}, with_zeros, seed=3),
        Case("zeros", {}, with_zeros, seed=4),
        Case("schedule", {}, schedule=warmup_decay),
        Case("corrected", {**_CORRECTED, **_FAST}),
        Case("corrected-sparse", _CORRECTED, sparse, seed=5),
        Case("corrected-shift", _CORRECTED, shift, seed=6),
        Case("corrected-zeros", _CORRECTED, with_zeros, seed=8),
        Case("corrected-tiny", _CORRECTED, tiny),
        Case("corrected-threshold", {**_CORRECTED, **_QUICK, "fallback_threshold": 1.5}, sparse),
        Case("parity", {**_PARITY, **_FAST}),
        Case("parity-jump", {**_PARITY, **_QUICK, "fallback_threshold": 1.5}, sparse, seed=7),
    ),
    golden=(
        Case("defaults"),
        Case("quick", _RECORDED),
        Case("corrected", {**_RECORDED, **_CORRECTED}),
        Case("parity", {**_RECORDED, **_PARITY}),
    ),
    bugs=(
        Bug("test_trajectory_params", _EpsInsideRoot),
        Bug("test_trajectory_state", _WrongDecayForTau),
        Bug("test_trajectory_state", _NoResidual),
    ),
    low_precision=(
        Case("coarse", COARSE, steps=12),
        Case("coarse-shift", {**COARSE, **_QUICK, "learning_rate": 0.1}, shift, steps=16),
    ),
    complex=(
        Case("complex", {**_FAST, "weight_decay": 0.1}),
        Case("complex-corrected", _CORRECTED, shift),
    ),
    nonfinite={"": "propagate", "torch": "skip"},
    by_modulus=True,
    # The published statistics add an epsilon; the corrected ones do not.
    scale_free={"eps": 1e-30, **_CORRECTED},
    quick={"b2": 0.9, "tau_decay": 0.9},
    narrow={},
    limits=(Limit({"adapt_strength": 0.0}, AdamW()),),
    capabilities={
        "corrected": 'stam accepts statistics="corrected"',
        "stat_sample": "stam accepts stat_sample=n",
        "parity": 'stam and stam_lite accept parity="stam-optimizer-0.1.0"',
    },
    betas=("b1_base", "b2"),
    renamed={"torch": {"mu_dtype": "exp_avg_dtype"}},
)
