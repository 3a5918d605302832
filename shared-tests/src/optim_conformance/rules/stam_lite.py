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
from optim_conformance.ranges import OPEN, at_least
from optim_conformance.rule import MU, Bug, Leaf, OptimizerRule, Slots, Step, mean, statistic
from optim_conformance.rules.stam import (
    B1_PROD,
    BETA1,
    PARITY,
    SHARED,
    STRONG,
    beta1_of,
    hold,
)


@dataclass(frozen=True)
class StamLite(Step):
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

    def first_direction(self, g: Leaf) -> Leaf:
        """Return g over the root mean square of its tensor."""
        return g / (np.sqrt(np.mean(g * g)) + 1e-8)


class _IntervalOffByOne(StamLite):
    """Beta1 is computed on steps k, 2k, ... and not on 1, k+1, ...."""

    def due(self, t: int) -> bool:
        return t % self.beta1_update_interval == 0


class _StaleBeta1(StamLite):
    """The moment uses the beta1 of the step before."""

    def step(self, p: Leaf, g: Leaf, s: Slots, *, t: int, lr: float) -> tuple[Leaf, Slots]:
        p, new = super().step(p, g, s, t=t, lr=lr)
        return p, {**new, "mu": s["beta1"] * s["mu"] + (1 - s["beta1"]) * g}


class _EpsRootOfScaleIgnored(StamLite):
    """The epsilon under the root of a mean is accepted and not added."""

    def direction(self, s: Slots, t: int) -> Leaf:
        return StamLite.direction(replace(self, eps_root=0.0), s, t)


_MEANS = "an average of means, relative to the size of their terms"
_FAST = {"learning_rate": 1e-2}
_PARITY = {"parity": PARITY}

RULE = OptimizerRule(
    step=StamLite,
    slots=(
        replace(MU, either=True),
        statistic("e1", 2e-7, _MEANS, real=False, signed=True, root="e2"),
        statistic("e2", 1.5e-6, "a float32 mean of squares, then an average"),
        BETA1,
        B1_PROD,
    ),
    ranges={**SHARED, "moment_decay": OPEN, "beta1_update_interval": at_least(1, 0, -2)},
    cases=(
        Case("defaults"),
        Case("no-decay", {"weight_decay": 0.0, **_FAST}),
        Case("strong", STRONG),
        Case("every-step", {"beta1_update_interval": 1}, shift),
        Case("interval-7", {"beta1_update_interval": 7, "moment_decay": 0.8}, shift),
        Case("no-adaptation", {"adapt_strength": 0.0, **_FAST}),
        Case("low-b1", {"b1_base": 0.4, "adapt_strength": 0.5}),
        Case("sparse", _FAST, sparse, seed=1),
        Case("constant", {}, constant),
        Case("tiny", {}, tiny),
        Case("large-eps", {"eps": 1e-2}, seed=3),
        Case("eps-root", {"eps_root": 1e-2, **_FAST}, with_zeros, seed=3),
        Case("zeros", {}, with_zeros, seed=4),
        Case("schedule", {}, schedule=warmup_decay),
        Case("parity", {**_PARITY, **_FAST}),
        Case("parity-tiny", _PARITY, tiny, seed=5),
    ),
    golden=(
        Case("defaults"),
        Case("interval", {"learning_rate": 0.01, "beta1_update_interval": 2, "moment_decay": 0.8}),
        Case("parity", _PARITY),
    ),
    bugs=(
        Bug("test_trajectory_state", _IntervalOffByOne),
        Bug("test_trajectory_state", _StaleBeta1),
        Bug("test_trajectory_params", _EpsRootOfScaleIgnored),
    ),
    low_precision=(
        Case("coarse", COARSE, steps=12),
        Case("coarse-shift", {**COARSE, "moment_decay": 0.8}, shift, steps=16),
    ),
    complex=(Case("complex", {**_FAST, "weight_decay": 0.1}),),
    nonfinite={"": "propagate", "torch": "skip"},
    by_modulus=True,
    quick={"moment_decay": 0.9},
    narrow={},
    betas=("b1_base", "moment_decay"),
    # A first moment of STAMLite is called by what it is: the state. It is float32 by default, and
    # the suites expect the parameter's dtype.
    renamed={"jax": {"mu_dtype": "state_dtype"}, "torch": {"mu_dtype": "exp_avg_dtype"}},
    given={"mu_dtype": None},
)
