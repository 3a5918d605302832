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
from typing import Literal, NamedTuple

from stam_core._means import strided_sample
from stam_core._power import one_minus_power
from stam_core._typing import Array, Mean, Namespace, Scalar
from stam_core._validate import (
    HALF_UNIT,
    NON_NEGATIVE,
    NOT_UNDERFLOWING,
    OPEN_UNIT,
    POSITIVE,
    check_choice,
    check_count,
    check_number,
    check_schedulable,
)

PARITY = "stam-optimizer-0.1.0"


@dataclass(frozen=True)
class STAMHyperparams:
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

    learning_rate: Scalar = 1e-3
    b1_base: Scalar = 0.9
    b2: Scalar = 0.999
    eps: Scalar = 1e-8
    weight_decay: Scalar = 0.01
    adapt_strength: Scalar = 0.2
    tau_decay: Scalar = 0.99
    fallback_threshold: Scalar = 100.0
    variance_eps: Scalar = 1e-8
    statistics: Literal["published", "corrected"] = "published"
    stat_sample: int | None = None
    parity: str | None = None
    eps_root: Scalar = 0.0

    def __post_init__(self) -> None:
        check_schedulable("learning_rate", self.learning_rate, POSITIVE, 1e-3)
        check_number("b1_base", self.b1_base, OPEN_UNIT, 0.9)
        check_number("b2", self.b2, OPEN_UNIT, 0.999)
        check_number("eps", self.eps, NON_NEGATIVE, 1e-8)
        check_number("eps_root", self.eps_root, NON_NEGATIVE, 0.0)
        check_schedulable("weight_decay", self.weight_decay, NON_NEGATIVE, 0.01)
        check_schedulable("adapt_strength", self.adapt_strength, HALF_UNIT, 0.2)
        check_number("tau_decay", self.tau_decay, OPEN_UNIT, 0.99)
        check_number("fallback_threshold", self.fallback_threshold, POSITIVE, 100.0)
        check_number("variance_eps", self.variance_eps, NOT_UNDERFLOWING, 1e-8)
        check_choice("statistics", self.statistics, ("published", "corrected"))
        check_count("stat_sample", self.stat_sample, None, optional=True)
        check_choice("parity", self.parity, (None, PARITY))
        if self.parity is not None and (self.statistics, self.stat_sample) != ("published", None):
            msg = (
                f"parity={self.parity!r} reproduces the published statistics in full, got "
                f"statistics={self.statistics!r} and stat_sample={self.stat_sample!r}: leave those "
                "two at their defaults, or leave out parity"
            )
            raise ValueError(msg)


class STAMStatistics(NamedTuple):
    """The per-tensor scalars that STAM carries from step to step.

    Attributes:
        s2: Variance proxy, EMA of mean |r|^2.
        tau: Running scale, EMA of mean |r|.
        b1_prod: P, the product of all beta1 so far.
    """

    s2: Array
    tau: Array
    b1_prod: Array


class STAMState(NamedTuple):
    """The state of STAM for one tensor.

    Attributes:
        mu: First moment, shape of the parameter.
        nu: Second moment, shape of the parameter, real.
        statistics: The scalars.
        beta1: Decay used in the last step.
        s: z/(1+z) of the last step, in [0, 1).
    """

    mu: Array
    nu: Array
    statistics: STAMStatistics
    beta1: Array
    s: Array


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


def residual_magnitude(g: Array, mu: Array, *, xp: Namespace) -> Array:
    """Return |r|, the magnitude of the residual of equation (1).

    Args:
        g: Gradient, or a sample of it.
        mu: Previous first moment, same shape.
        xp: The array namespace.
    """
    return xp.abs(g - mu)


def residual_means(magnitude: Array, *, mean: Mean) -> tuple[Array, Array]:
    """Return mean |r|^2 and mean |r|, which equations (2) and (3) average over time.

    Args:
        magnitude: |r|, from :func:`residual_magnitude`.
        mean: The mean to use.
    """
    return mean(magnitude * magnitude), mean(magnitude)


def normalised_variance(
    s2: Array, tau: Array, t: Array, hyperparams: STAMHyperparams, *, xp: Namespace
) -> Array:
    """Return z, equation (4) or (4c).

    Args:
        s2: Variance proxy, finite, any shape.
        tau: Running scale, finite, same shape.
        t: Step being taken, from 1, a 0-d array of the same floating dtype.
        hyperparams: The hyperparameters.
        xp: The array namespace.
    """
    hp = hyperparams
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


def update_statistics(
    statistics: STAMStatistics,
    mean_square: Array,
    mean_abs: Array,
    t: Array,
    hyperparams: STAMHyperparams,
    *,
    xp: Namespace,
) -> tuple[STAMStatistics, Array, Array]:
    """Advance the scalars by one step, equations (2) to (5) and (8).

    Works elementwise, so the scalars may have any common shape.

    Args:
        statistics: The scalars before the step, in float32 or float64.
        mean_square: mean |r|^2.
        mean_abs: mean |r|.
        t: Step being taken, from 1, a 0-d array of the same floating dtype.
        hyperparams: The hyperparameters.
        xp: The array namespace.

    Returns:
        The scalars after the step, beta1 and s. Where the variance of this step is not finite, s2
        and tau keep their values, beta1 is ``b1_base`` and s is that of the kept values.
    """
    hp = hyperparams
    s2 = hp.b2 * statistics.s2 + (1 - hp.b2) * mean_square
    tau = hp.tau_decay * statistics.tau + (1 - hp.tau_decay) * mean_abs
    finite = xp.logical_and(xp.isfinite(s2), xp.isfinite(tau))
    s2 = xp.where(finite, s2, statistics.s2)
    tau = xp.where(finite, tau, statistics.tau)
    z = normalised_variance(s2, tau, t, hp, xp=xp)
    s = z / (1 + z)
    trusted = finite
    if hp.parity is not None:
        below = s2 < hp.fallback_threshold * (tau * tau + hp.variance_eps)
        trusted = xp.logical_and(finite, below)
    beta1 = clip_beta1(s, trusted, hp.b1_base, hp.adapt_strength, xp=xp)
    return STAMStatistics(s2, tau, statistics.b1_prod * beta1), beta1, s


def update_moments(
    g: Array, mu: Array, nu: Array, beta1: Array, hyperparams: STAMHyperparams, *, xp: Namespace
) -> tuple[Array, Array]:
    """Return the new first and second moment, equations (6) and (7).

    Args:
        g: Gradient.
        mu: First moment, shape of ``g``.
        nu: Second moment, shape of ``g``, real.
        beta1: Decay of the first moment; broadcasts against ``g``.
        hyperparams: The hyperparameters.
        xp: The array namespace.
    """
    magnitude = xp.abs(g)
    b2 = hyperparams.b2
    return beta1 * mu + (1 - beta1) * g, b2 * nu + (1 - b2) * (magnitude * magnitude)


def direction(
    mu: Array, nu: Array, b1_prod: Array, t: Array, hyperparams: STAMHyperparams, *, xp: Namespace
) -> Array:
    """Return the preconditioned descent direction, the quotient of equation (9).

    Args:
        mu: New first moment.
        nu: New second moment, real.
        b1_prod: P after the step; broadcasts against ``mu``.
        t: Step being taken, from 1, a 0-d floating array.
        hyperparams: The hyperparameters.
        xp: The array namespace.
    """
    hp = hyperparams
    if hp.parity is None:
        mu_hat = mu / (1 - b1_prod)
        nu_hat = nu / one_minus_power(hp.b2, t, xp=xp)
    else:
        mu_hat = mu / (1 - b1_prod + hp.eps)
        nu_hat = nu / (1 - hp.b2**t + hp.eps)
    return mu_hat / (xp.sqrt(nu_hat + hp.eps_root) + hp.eps)


def zero_nonfinite(g: Array, *, xp: Namespace) -> Array:
    """Return ``g`` with NaN and infinite entries replaced by 0.

    Example:
        >>> import numpy as np
        >>> zero_nonfinite(np.asarray([1.0, np.nan, -np.inf]), xp=np).tolist()
        [1.0, 0.0, 0.0]
    """
    return xp.where(xp.isfinite(g), g, xp.zeros_like(g))


def decayed_step(p: Array, d: Array, learning_rate: Scalar, weight_decay: Scalar) -> Array:
    """Return the parameter after a step along ``-d`` with decoupled decay, equation (9).

    Example:
        >>> decayed_step(1.0, 0.5, 0.1, 0.1)
        0.94
    """
    return p * (1 - learning_rate * weight_decay) - learning_rate * d


def init_state(p: Array, hyperparams: STAMHyperparams, *, xp: Namespace) -> STAMState:
    """Return the state before the first step, in the dtype of ``p`` (its real dtype where real)."""
    real = xp.abs(p)
    zero = xp.sum(xp.zeros_like(real))
    statistics = STAMStatistics(s2=zero, tau=zero, b1_prod=zero + 1)
    beta1 = zero + hyperparams.b1_base
    return STAMState(xp.zeros_like(p), xp.zeros_like(real), statistics, beta1, zero)


def step(
    p: Array,
    g: Array,
    state: STAMState,
    t: Array,
    hyperparams: STAMHyperparams,
    *,
    xp: Namespace,
    mean: Mean,
) -> tuple[Array, STAMState]:
    """Take one step on one tensor, all of equations (1) to (9).

    Args:
        p: Parameter.
        g: Gradient, shape and dtype of ``p``.
        state: State of this tensor.
        t: Step being taken, from 1, a 0-d array of the real dtype.
        hyperparams: The hyperparameters, all of them numbers.
        xp: The array namespace.
        mean: The mean to use for the statistics.

    Returns:
        The new parameter and the new state.

    Example:
        >>> import numpy as np
        >>> hp = STAMHyperparams(learning_rate=0.1)
        >>> p, g = np.asarray([1.0, 2.0]), np.asarray([0.5, -0.25])
        >>> state, t = init_state(p, hp, xp=np), np.asarray(1.0)
        >>> p, state = step(p, g, state, t, hp, xp=np, mean=np.mean)
        >>> p.round(4).tolist(), round(float(state.beta1), 4)
        ([0.899, 2.098], 0.7349)
    """
    hp = hyperparams
    if hp.parity is not None:
        g = zero_nonfinite(g, xp=xp)
    sampled = (strided_sample(x, hp.stat_sample, xp=xp) for x in (g, state.mu))
    means = residual_means(residual_magnitude(*sampled, xp=xp), mean=mean)
    statistics, beta1, s = update_statistics(state.statistics, *means, t, hp, xp=xp)
    mu, nu = update_moments(g, state.mu, state.nu, beta1, hp, xp=xp)
    d = direction(mu, nu, statistics.b1_prod, t, hp, xp=xp)
    p = decayed_step(p, d, hp.learning_rate, hp.weight_decay)
    return p, STAMState(mu, nu, statistics, beta1, s)
