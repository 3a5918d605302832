"""STAM: AdamW whose first-moment decay follows the variance of the residual.

Per tensor, with gradient g, first moment m, second moment v, parameter p and t = 1, 2, ... the step
being taken:

    r     = g - m                                                              (1)
    s2    = b2*s2  + (1-b2)*mean(|r|^2)                                        (2)
    tau   = td*tau + (1-td)*mean(|r|)                                          (3)
    z     = min(s2, threshold*(tau^2+veps)) / (tau^2+veps)                     (4)
    beta1 = clip(b1*(1 - a*s), b1_min, b1),  s = z/(1+z)                       (5)
    b1_min= min(b1, max(0.5, b1*(1-a)))
    m     = beta1*m + (1-beta1)*g                                              (6)
    v     = b2*v + (1-b2)*|g|^2                                                (7)
    P     = P*beta1                                                            (8)
    p    <- p*(1 - lr*wd) - lr * (m/(1-P)) / (sqrt(v/(1-b2^t) + er) + eps)     (9)

s2, tau and v start at 0, P at 1, and er (``eps_root``) is 0 unless given.

With ``statistics="corrected"``, (4) becomes scale-free and free
of the start-up ramp:

    s2' = s2/(1-b2^t),  tau' = tau/(1-td^t)
    z   = s2'/(tau'^2 + s2'/threshold),  z = 0 where s2' = 0                  (4c)

Differs from the published package (stam-optimizer 0.1.0) in:
1. above the threshold z is capped, where the package jumps back to beta1 = b1;
2. bias corrections are exact, where the package adds eps to both;
3. non-finite gradients propagate, where the package replaces them by 0;
4. s2 and tau keep their last finite value, so that one bad step cannot poison them.
``parity="stam-optimizer-0.1.0"`` takes the package's side on 1 to 3.
"""

from dataclasses import dataclass
from typing import Any, Literal

from stam_core._hyperparams import (
    HALF_UNIT,
    NON_NEGATIVE,
    NOT_UNDERFLOWING,
    OPEN_UNIT,
    POSITIVE,
    Hyperparams,
    choice,
    integer,
    number,
)
from stam_core._power import one_minus_power
from stam_core._rule import Moment, Report, Rule, Slots, Statistic, zero_nonfinite
from stam_core._typing import Array, Exact, Mean, Namespace, Scalar

PARITY = "stam-optimizer-0.1.0"


@dataclass(frozen=True, kw_only=True)
class STAMHyperparams(Hyperparams):
    """The hyperparameters of STAM, checked when they are made.

    Python numbers are checked; arrays (tracers under ``jax.jit``) are taken as they are.
    ``learning_rate``, ``weight_decay`` and ``adapt_strength`` may also be callables of the step,
    for the frameworks to evaluate.

    Attributes:
        learning_rate: Step size, > 0.
        b1_base: Largest decay of the first moment, in (0, 1).
        b2: Decay of the second moment and of s2, in (0, 1).
        eps: Added to the root of the second moment, >= 0.
        eps_root: Added to the second moment under the root, >= 0; above 0 the update can be
            differentiated where all gradients were 0.
        weight_decay: Decoupled weight decay, >= 0.
        adapt_strength: How far beta1 may fall below ``b1_base``, in [0, 0.5]; 0 is AdamW.
        tau_decay: Decay of the running scale, in (0, 1).
        fallback_threshold: Cap on z, > 0.
        variance_eps: Added to tau^2 in the published z, >= 1e-30, so that an all-zero residual
            gives z = 0.
        statistics: "published" (4) or "corrected" (4c).
        stat_sample: Average over a fixed strided sample of at most this many entries of a tensor;
            None for all.
        parity: None, or the version of the published package whose arithmetic is to be reproduced.

    Raises:
        ValueError: A number is out of range.
        TypeError: A value is not a number.

    Example:
        >>> STAMHyperparams(adapt_strength=0.7)
        Traceback (most recent call last):
        ...
        ValueError: adapt_strength must be in [0, 0.5], got 0.7: the default is 0.2
    """

    b1_base: Scalar = number(0.9, OPEN_UNIT)
    b2: Scalar = number(0.999, OPEN_UNIT)
    eps: Scalar = number(1e-8, NON_NEGATIVE)
    weight_decay: Scalar = number(0.01, NON_NEGATIVE, schedulable=True)
    adapt_strength: Scalar = number(0.2, HALF_UNIT, schedulable=True)
    tau_decay: Scalar = number(0.99, OPEN_UNIT)
    fallback_threshold: Scalar = number(100.0, POSITIVE)
    variance_eps: Scalar = number(1e-8, NOT_UNDERFLOWING)
    statistics: Literal["published", "corrected"] = choice(
        "published", "corrected", default="published"
    )
    stat_sample: int | None = integer(None)
    parity: str | None = choice(None, PARITY, default=None)
    eps_root: Scalar = number(0.0, NON_NEGATIVE)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.parity is not None and (self.statistics, self.stat_sample) != ("published", None):
            msg = (
                f"parity={self.parity!r} reproduces the published statistics in full, got "
                f"statistics={self.statistics!r} and stat_sample={self.stat_sample!r}: leave those "
                "two at their defaults, or leave out parity"
            )
            raise ValueError(msg)


def prepare(g: Array, hp: Any, /, *, xp: Namespace) -> Array:
    """Return the gradient, in parity mode with its bad entries replaced by 0."""
    return g if hp.parity is None else zero_nonfinite(g, xp=xp)


def observe(g: Array, moments: Slots, hp: STAMHyperparams, /, *, xp: Namespace) -> Array:
    """Return |r|, the magnitude of the residual of equation (1)."""
    del hp
    return xp.abs(g - moments["mu"])


def means(magnitude: Array, /, *, xp: Namespace, mean: Mean) -> tuple[Array, Array]:
    """Return mean |r|^2 and mean |r|, which equations (2) and (3) average over time."""
    del xp
    return mean(magnitude * magnitude), mean(magnitude)


def advance(
    statistics: Slots,
    means: tuple[Array, ...],
    count: Array,
    hp: STAMHyperparams,
    /,
    *,
    xp: Namespace,
) -> dict[str, Array]:
    """Return the statistics after a step, equations (2) to (5) and (8).

    Where the variance of this step is not finite, s2 and tau keep their values, beta1 is
    ``b1_base`` and s is that of the kept values.
    """
    mean_square, mean_abs = means
    s2 = hp.b2 * statistics["s2"] + (1 - hp.b2) * mean_square
    tau = hp.tau_decay * statistics["tau"] + (1 - hp.tau_decay) * mean_abs
    finite = xp.logical_and(xp.isfinite(s2), xp.isfinite(tau))
    s2 = xp.where(finite, s2, statistics["s2"])
    tau = xp.where(finite, tau, statistics["tau"])
    z = _normalised_variance(s2, tau, xp.astype(count, s2.dtype), hp, xp=xp)
    s = z / (1 + z)
    trusted = finite
    if hp.parity is not None:
        below = s2 < hp.fallback_threshold * (tau * tau + hp.variance_eps)
        trusted = xp.logical_and(finite, below)
    beta1 = clip_beta1(s, trusted, hp.b1_base, hp.adapt_strength, xp=xp)
    b1_prod = statistics["b1_prod"] * beta1
    return {"s2": s2, "tau": tau, "b1_prod": b1_prod, "beta1": beta1, "s": s}


def accumulate(
    g: Array,
    moments: Slots,
    statistics: Slots,
    hp: STAMHyperparams,
    /,
    *,
    xp: Namespace,
    exact: Exact,
) -> dict[str, Array]:
    """Return the moments after a step, equations (6) and (7)."""
    del exact
    beta1, magnitude = statistics["beta1"], xp.abs(g)
    mu = beta1 * moments["mu"] + (1 - beta1) * g
    nu = hp.b2 * moments["nu"] + (1 - hp.b2) * (magnitude * magnitude)
    return {"mu": mu, "nu": nu}


def direction(
    g: Array,
    moments: Slots,
    statistics: Slots,
    count: Array,
    hp: STAMHyperparams,
    /,
    *,
    xp: Namespace,
) -> Array:
    """Return the quotient of equation (9)."""
    del g
    mu, nu, b1_prod = moments["mu"], moments["nu"], statistics["b1_prod"]
    t = xp.astype(count, nu.dtype)
    if hp.parity is None:
        mu_hat = mu / (1 - b1_prod)
        nu_hat = nu / one_minus_power(hp.b2, t, xp=xp)
    else:
        mu_hat = mu / (1 - b1_prod + hp.eps)
        nu_hat = nu / (1 - hp.b2**t + hp.eps)
    return mu_hat / (xp.sqrt(nu_hat + hp.eps_root) + hp.eps)


def report(statistics: Slots, xp: Namespace) -> Report:
    """Return what the statistics say: the variance is s2, and the scale tau."""
    del xp
    s = statistics["s"]
    return Report(statistics["beta1"], s / (1 - s), statistics["s2"], statistics["tau"])


def clip_beta1(s: Array, trusted: Array, b1: Scalar, a: Scalar, *, xp: Namespace) -> Array:
    """Map the saturated variance s = z/(1+z) to beta1, equation (5).

    Args:
        s: Saturated variance in [0, 1), any shape.
        trusted: Where it can be trusted, boolean, same shape; elsewhere the result is ``b1``.
        b1: Largest decay, in (0, 1).
        a: Adaptation strength, in [0, 0.5].
        xp: The array namespace of ``s``.

    Returns:
        beta1 in [min(b1, max(0.5, b1*(1-a))), b1], shape of ``s``.

    Example:
        >>> import numpy as np
        >>> s = np.asarray([0.0, 0.5, 1.0])
        >>> clip_beta1(s, np.isfinite(s), 0.9, 0.2, xp=np).round(4).tolist()
        [0.9, 0.81, 0.72]
    """
    base = xp.zeros_like(s) + b1
    floor = xp.clip(xp.clip(base * (1 - a), 0.5, None), None, base)
    beta1 = xp.clip(base * (1 - a * s), floor, base)
    return xp.where(trusted, beta1, base)


def _normalised_variance(
    s2: Array, tau: Array, t: Array, hp: STAMHyperparams, *, xp: Namespace
) -> Array:
    """Return z, equation (4) or (4c), of finite statistics of any common shape."""
    if hp.statistics == "corrected":
        variance = s2 / one_minus_power(hp.b2, t, xp=xp)
        scale = tau / one_minus_power(hp.tau_decay, t, xp=xp)
        floor = scale * scale + variance / hp.fallback_threshold
        # Not variance > 0: of fading statistics the floor underflows first, and z would be x/0.
        moving = floor > 0
        return xp.where(
            moving, variance / xp.where(moving, floor, xp.ones_like(floor)), xp.zeros_like(floor)
        )
    floor = tau * tau + hp.variance_eps
    return xp.clip(s2, None, hp.fallback_threshold * floor) / floor


STAM = Rule(
    name="stam",
    hyperparams=STAMHyperparams,
    moments=(Moment("mu", "exp_avg"), Moment("nu", "exp_avg_sq", real=True, wide=True)),
    statistics=(
        Statistic("s2", 0.0),
        Statistic("tau", 0.0),
        Statistic("b1_prod", 1.0),
        Statistic("beta1", "b1_base"),
        Statistic("s", 0.0),
    ),
    prepare=prepare,
    reads=("mu",),
    observe=observe,
    means=means,
    advance=advance,
    accumulate=accumulate,
    direction=direction,
    report=report,
)
"""STAM, as a record."""
