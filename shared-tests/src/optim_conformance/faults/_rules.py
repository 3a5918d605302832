"""Bugs in the formulas, one for each check of them; the rules' files plant more."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from optim_conformance.faults._plant import plant_rule
from optim_conformance.rules.stac import Sign
from optim_conformance.rules.stam import Stam
from optim_conformance.rules.stam_lite import StamLite


@plant_rule("test_first_step", "stam")
class NoBiasCorrection(Stam):
    """The first moment is not corrected for its start at zero."""

    def direction(self, s: Any, t: int) -> Any:
        return s["mu"] / (np.sqrt(s["nu"] / (1 - self.b2**t)) + self.eps)


@plant_rule("test_golden_trajectories", "stam")
class ConstantBiasCorrection(Stam):
    """The first moment is corrected by b1^t and not by the product of what was used."""

    def direction(self, s: Any, t: int) -> Any:
        fixed = {**s, "b1_prod": self.b1_base**t}
        return super().direction(fixed, t)


@plant_rule("test_updates_from_zero", "stam")
class CancelledCorrection(Stam):
    """The bias correction of the second moment is one minus a power in float32."""

    def direction(self, s: Any, t: int) -> Any:
        correction = float(1 - np.float32(self.b2) ** np.float32(t))
        return super().direction({**s, "nu": s["nu"] * (1 - self.b2**t) / correction}, t)


@plant_rule("test_trajectory_params", "stam")
class EpsRootIgnored(Stam):
    """The epsilon under the root is accepted and not added."""

    def direction(self, s: Any, t: int) -> Any:
        return Stam.direction(replace(self, eps_root=0.0), s, t)


@plant_rule("test_first_step", "stam")
class CountOffByOne(Stam):
    """The bias correction counts steps from 0, plus one too many."""

    def direction(self, s: Any, t: int) -> Any:
        return super().direction(s, t + 1)


@plant_rule("test_trajectory_state", "stam")
class MissingLowerBound(Stam):
    """Nothing keeps beta1 above b1_min."""

    def beta1(self, z: Any) -> Any:
        return self.b1_base * (1 - self.adapt_strength * z / (1 + z))


@plant_rule("test_trajectory_state", "stam")
class MissingCap(Stam):
    """The variance is not capped by the threshold."""

    def ratio(self, s2: Any, tau: Any, t: int) -> Any:
        return s2 / (tau**2 + self.variance_eps)


@plant_rule("test_trajectory_state", "stam")
class BaseInProduct(Stam):
    """P collects b1 and not the beta1 that was used."""

    def step(self, p: Any, g: Any, s: Any, *, t: int, lr: float) -> Any:
        p, new = super().step(p, g, s, t=t, lr=lr)
        return p, {**new, "b1_prod": s["b1_prod"] * self.b1_base}


@plant_rule("test_trajectory_params", "stam")
class DecayAfterUpdate(Stam):
    """The decay shrinks the updated parameter."""

    def step(self, p: Any, g: Any, s: Any, *, t: int, lr: float) -> Any:
        _, new = super().step(p, g, s, t=t, lr=lr)
        return (p - lr * self.direction(new, t)) * (1 - lr * self.weight_decay), new


@plant_rule("test_weight_decay_is_decoupled", "stam")
class CoupledDecay(Stam):
    """The decay is an L2 term in the gradient."""

    def step(self, p: Any, g: Any, s: Any, *, t: int, lr: float) -> Any:
        moved, new = super().step(p, g + self.weight_decay * p, s, t=t, lr=lr)
        return moved + lr * self.weight_decay * p, new


@plant_rule("test_converges", "stam")
class WrongSign(Stam):
    """The update climbs."""

    def direction(self, s: Any, t: int) -> Any:
        return -super().direction(s, t)


@plant_rule("test_duplicated_entries", "stam")
class SumForMean(Stam):
    """The running scale adds entries up."""

    def variance(self, r: Any, s: Any) -> Any:
        s2, _ = super().variance(r, s)
        return s2, self.tau_decay * s["tau"] + (1 - self.tau_decay) * np.abs(r).sum()


@plant_rule("test_entries_are_exchangeable", "stam")
class PrefixForMean(Stam):
    """The statistics see the first half of the entries."""

    def variance(self, r: Any, s: Any) -> Any:
        return super().variance(r.reshape(-1)[: max(1, r.size // 2)], s)


@plant_rule("test_large_leaf", "stam")
class TailLost(Stam):
    """The mean runs over whole blocks of 4,096 entries and forgets the rest."""

    def variance(self, r: Any, s: Any) -> Any:
        flat = r.reshape(-1)
        whole = flat.size - flat.size % 4096
        return super().variance(flat[:whole] if whole else r, s)


@plant_rule("test_propagate", "stam")
class PoisonedStatistics(Stam):
    """A statistic that is not finite is stored and stays."""

    def step(self, p: Any, g: Any, s: Any, *, t: int, lr: float) -> Any:
        s2, tau = self.variance(g - s["mu"], s)
        p, new = super().step(p, g, s, t=t, lr=lr)
        return p, {**new, "s2": s2, "tau": tau}


@plant_rule("test_scale", "stam")
class ScaleDependent(Stam):
    """The corrected statistics carry the published epsilon."""

    def ratio(self, s2: Any, tau: Any, t: int) -> Any:
        z = super().ratio(s2, tau, t)
        return z * tau**2 / (tau**2 + self.variance_eps * 1e4)


@plant_rule("test_odd_shapes", "stam")
class SampleVariance(Stam):
    """A tensor of one entry counts as having no variance."""

    def variance(self, r: Any, s: Any) -> Any:
        s2, tau = super().variance(r, s)
        return (s2 if r.size > 1 else s["s2"]), tau


@plant_rule("test_empty_leaf", "stam")
class MeanOfNothing(Stam):
    """The mean of no entries is NaN, and beta1 follows."""

    def step(self, p: Any, g: Any, s: Any, *, t: int, lr: float) -> Any:
        p, new = super().step(p, g, s, t=t, lr=lr)
        return p, (new if p.size else {**new, "beta1": np.float64(np.nan)})


@plant_rule("test_vanishing_statistics", "stam")
class ZeroByZero(Stam):
    """The corrected ratio becomes 0/0 where both statistics have faded away."""

    def ratio(self, s2: Any, tau: Any, t: int) -> Any:
        z = super().ratio(s2, tau, t)
        return np.float64(np.nan) if self.statistics == "corrected" and s2 < 1e-44 else z

    def beta1(self, z: Any) -> Any:
        return np.float64(np.nan) if np.isnan(z) else super().beta1(z)


@plant_rule("test_limits", "stam")
class AdaptsWithoutStrength(Stam):
    """A strength of 0 is taken for the default."""

    def beta1(self, z: Any) -> Any:
        strength = self.adapt_strength or 0.2
        return self.b1_base * (1 - strength * z / (1 + z))


@plant_rule("test_beta1_is_bounded", "stam")
class UnboundedAtExtremes(Stam):
    """Beta1 leaves its interval where the ratio is large."""

    def beta1(self, z: Any) -> Any:
        return super().beta1(z) if z < 50 else np.float64(self.b1_base * 1.02)


@plant_rule("test_first_step", "stam_lite")
class UncorrectedScale(StamLite):
    """The denominator forgets the correction of e2."""

    def direction(self, s: Any, t: int) -> Any:
        return (s["mu"] / (1 - s["b1_prod"])) / (np.sqrt(s["e2"]) + self.eps)


@plant_rule("test_propagate_in_the_first_step", "stam_lite")
class MovesWithoutScale(StamLite):
    """A tensor that has no scale yet is divided by the epsilon alone."""

    def direction(self, s: Any, t: int) -> Any:
        scaled = super().direction(s, t)
        return s["mu"] / (1 - s["b1_prod"]) / self.eps if s["e2"] == 0 else scaled


@plant_rule("test_overflowing_statistics", "stam_lite")
class UnboundedOnOverflow(StamLite):
    """A huge second moment switches the momentum off."""

    def beta1(self, e1: Any, e2: Any, t: int) -> Any:
        return super().beta1(e1, e2, t) if e2 < 1e30 else np.float64(0.0)

    def due(self, t: int) -> bool:
        return True


@plant_rule("test_mirror", "stac")
class LopsidedSign(Sign):
    """A negative momentum counts from -1e-2 on."""

    def step(self, p: Any, g: Any, s: Any, *, t: int, lr: float) -> Any:
        m = self.momentum(g, s)
        lr_s = self.sign_lr_scale * lr
        p = p * (1 - lr_s * self.weight_decay) - lr_s * np.where(
            m > 0, 1.0, np.where(m < -1e-2, -1.0, 0.0)
        )
        return p, ({"mu": m} if self.sign_momentum else {})


@plant_rule("test_limits", "stac")
class NesterovSign(Sign):
    """The sign is that of the look-ahead."""

    def step(self, p: Any, g: Any, s: Any, *, t: int, lr: float) -> Any:
        _, new = super().step(p, g, s, t=t, lr=lr)
        ahead = self.sign_momentum * self.momentum(g, s) + (1 - self.sign_momentum) * g
        lr_s = self.sign_lr_scale * lr
        return p * (1 - lr_s * self.weight_decay) - lr_s * np.sign(ahead), new


@plant_rule("test_sample_is_strided", "stam")
class SampleTooLarge(Stam):
    """The sample has one entry too many."""

    def variance(self, r: Any, s: Any) -> Any:
        return replace(self, stat_sample=(self.stat_sample or r.size) + 1).full(r, s)

    def full(self, r: Any, s: Any) -> Any:
        return super().variance(r, s)


@plant_rule("test_sample_of_everything", "stam")
class SampleOfHalf(Stam):
    """The sample is halved once more."""

    def variance(self, r: Any, s: Any) -> Any:
        half = r.reshape(-1)[::2] if self.stat_sample else r
        return super().variance(half, s)


@plant_rule("test_complex", "stam")
class SquareWithoutModulus(Stam):
    """The second moment of a complex tensor squares its real part only."""

    def second_moment(self, g: Any, s: Any) -> Any:
        return self.b2 * s["nu"] + (1 - self.b2) * np.real(g) ** 2


@plant_rule("test_complex", "stam_lite")
class RealMeanOnly(StamLite):
    """The mean of a complex gradient loses its imaginary part."""

    def moments(self, g: Any, s: Any) -> Any:
        e1, e2 = super().moments(g, s)
        return (np.real(e1) + 0j if np.iscomplexobj(e1) else e1), e2
