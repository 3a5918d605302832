"""STAMLite: adaptive momentum from two scalar moments of the gradient, without a second moment.

Per tensor, with the symbols of STAM:

    e1  = md*e1 + (1-md)*mean(g),   e2 = md*e2 + (1-md)*mean(|g|^2),   c = 1 - md^t           (1)
    var = max(e2/c - |e1/c|^2, 0),  z = var/(e2/c + eps),  s = z/(1+z)                        (2)
    every k steps (t = 1, k+1, 2k+1, ...):  beta1 = clip(b1*(1 - a*s), b1_min, b1)            (3)
    m   = beta1*m + (1-beta1)*g,    P = P*beta1                                               (4)
    p  <- p*(1 - lr*wd) - lr * (m/(1-P)) / (sqrt(e2/c + er) + eps)                            (5)

e1 and e2 start at 0, P at 1, and er (``eps_root``) is 0 unless given. While e2 is 0 the tensor has
no scale yet, and the quotient of (5) is 0 (nan where m is not finite): a first gradient with one
bad entry would otherwise move its healthy entries by lr*m/eps.

The denominator is one number per tensor, as in NovoGrad and
Adam-mini, which are its peers; it is not a cheaper AdamW.

Differs from the published package (stam-optimizer 0.1.0) in:
1. only m may be stored in a short dtype; the scalars never are;
2. c and 1-P are exact, where the package adds eps to both;
3. non-finite gradients propagate, where the package replaces them by 0;
4. e1 and e2 keep their last finite value;
5. a tensor without a scale is not moved, where the package divides by eps.
``parity="stam-optimizer-0.1.0"`` takes the package's side on 2, 3 and 5.
"""

from dataclasses import dataclass
from typing import NamedTuple

from stam_core._means import strided_sample
from stam_core._power import one_minus_power
from stam_core._stam import PARITY, clip_beta1, decayed_step, zero_nonfinite
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


@dataclass(frozen=True)
class STAMLiteHyperparams:
    """The hyperparameters of STAMLite, checked when they are made.

    Python numbers are checked; arrays (tracers under ``jax.jit``) are taken as they are.
    ``learning_rate``, ``weight_decay`` and ``adapt_strength`` may also be callables of the step,
    for the frameworks to evaluate.

    Attributes:
        learning_rate: Step size, > 0.
        b1_base: Largest decay of the first moment, in (0, 1).
        eps: Added to the denominators, >= 1e-30.
        eps_root: Added to the mean square under the root, >= 0.
        weight_decay: Decoupled weight decay, >= 0.
        adapt_strength: How far beta1 may fall below ``b1_base``, in [0, 0.5].
        moment_decay: Decay of e1 and e2, in (0, 1).
        beta1_update_interval: Steps between two updates of beta1, >= 1.
        stat_sample: Average over a fixed strided sample of at most this many entries of a tensor;
            None for all.
        parity: None, or the version of the published package whose arithmetic is to be reproduced.

    Raises:
        ValueError: A number is out of range.
        TypeError: A value is not a number.

    Example:
        >>> STAMLiteHyperparams(beta1_update_interval=0)
        Traceback (most recent call last):
        ...
        ValueError: beta1_update_interval must be >= 1, got 0: the default is 5
    """

    learning_rate: Scalar = 1e-3
    b1_base: Scalar = 0.9
    eps: Scalar = 1e-8
    weight_decay: Scalar = 0.01
    adapt_strength: Scalar = 0.2
    moment_decay: Scalar = 0.99
    beta1_update_interval: Scalar = 5
    stat_sample: int | None = None
    parity: str | None = None
    eps_root: Scalar = 0.0

    def __post_init__(self) -> None:
        check_schedulable("learning_rate", self.learning_rate, POSITIVE, 1e-3)
        check_number("b1_base", self.b1_base, OPEN_UNIT, 0.9)
        check_number("eps", self.eps, NOT_UNDERFLOWING, 1e-8)
        check_number("eps_root", self.eps_root, NON_NEGATIVE, 0.0)
        check_schedulable("weight_decay", self.weight_decay, NON_NEGATIVE, 0.01)
        check_schedulable("adapt_strength", self.adapt_strength, HALF_UNIT, 0.2)
        check_number("moment_decay", self.moment_decay, OPEN_UNIT, 0.99)
        check_count("beta1_update_interval", self.beta1_update_interval, 5)
        check_count("stat_sample", self.stat_sample, None, optional=True)
        check_choice("parity", self.parity, (None, PARITY))
        if self.parity is not None and self.stat_sample is not None:
            msg = (
                f"parity={self.parity!r} reproduces the published statistics in full, got "
                f"stat_sample={self.stat_sample!r}: leave out one of the two"
            )
            raise ValueError(msg)


class STAMLiteStatistics(NamedTuple):
    """The per-tensor scalars that STAMLite carries from step to step.

    Attributes:
        e1: EMA of mean g, complex for complex gradients.
        e2: EMA of mean |g|^2.
        beta1: Decay in force.
        b1_prod: P, the product of all beta1 so far.
    """

    e1: Array
    e2: Array
    beta1: Array
    b1_prod: Array


class STAMLiteState(NamedTuple):
    """The state of STAMLite for one tensor.

    Attributes:
        mu: First moment, shape of the parameter.
        statistics: The scalars.
        s: z/(1+z) of the last step, in [0, 0.5].
    """

    mu: Array
    statistics: STAMLiteStatistics
    s: Array


def gradient_means(g: Array, *, xp: Namespace, mean: Mean) -> tuple[Array, Array]:
    """Return mean g and mean |g|^2.

    Args:
        g: Gradient, or a sample of it.
        xp: The array namespace.
        mean: The mean to use.
    """
    magnitude = xp.abs(g)
    return mean(g), mean(magnitude * magnitude)


def correction(t: Array, hyperparams: STAMLiteHyperparams, *, xp: Namespace) -> Array:
    """Return c of equation (1); in parity mode with the eps that the package adds to it."""
    shift = 0.0 if hyperparams.parity is None else hyperparams.eps
    return one_minus_power(hyperparams.moment_decay, t, xp=xp) + shift


def update_lite_statistics(
    statistics: STAMLiteStatistics,
    mean_g: Array,
    mean_square: Array,
    t: Array,
    refresh: Array,
    hyperparams: STAMLiteHyperparams,
    *,
    xp: Namespace,
) -> tuple[STAMLiteStatistics, Array]:
    """Advance the scalars by one step, equations (1) to (4).

    Works elementwise, so the scalars may have any common shape.

    Args:
        statistics: The scalars before the step, in float32 or float64 (e1 may be complex).
        mean_g: mean g.
        mean_square: mean |g|^2.
        t: Step being taken, from 1, a 0-d array of the same floating dtype.
        refresh: Whether beta1 is updated in this step, 0-d boolean.
        hyperparams: The hyperparameters.
        xp: The array namespace.

    Returns:
        The scalars after the step, and s. Where this step's moments are not finite, e1 and e2 keep
        their values and an updated beta1 is ``b1_base``.
    """
    hp = hyperparams
    e1 = hp.moment_decay * statistics.e1 + (1 - hp.moment_decay) * mean_g
    e2 = hp.moment_decay * statistics.e2 + (1 - hp.moment_decay) * mean_square
    finite = xp.logical_and(xp.isfinite(e1), xp.isfinite(e2))
    e1 = xp.where(finite, e1, statistics.e1)
    e2 = xp.where(finite, e2, statistics.e2)
    c = correction(t, hp, xp=xp)
    mean_hat, square_hat = xp.abs(e1 / c), e2 / c
    z = xp.clip(square_hat - mean_hat * mean_hat, 0.0, None) / (square_hat + hp.eps)
    s = z / (1 + z)
    candidate = clip_beta1(s, finite, hp.b1_base, hp.adapt_strength, xp=xp)
    beta1 = xp.where(refresh, candidate, statistics.beta1)
    return STAMLiteStatistics(e1, e2, beta1, statistics.b1_prod * beta1), s


def update_momentum(g: Array, mu: Array, beta1: Array) -> Array:
    """Return the new first moment, equation (4)."""
    return beta1 * mu + (1 - beta1) * g


def lite_direction(
    mu: Array,
    e2: Array,
    b1_prod: Array,
    t: Array,
    hyperparams: STAMLiteHyperparams,
    *,
    xp: Namespace,
) -> Array:
    """Return the preconditioned descent direction, the quotient of equation (5).

    Args:
        mu: New first moment.
        e2: Mean square after the step; broadcasts against ``mu``.
        b1_prod: P after the step; broadcasts against ``mu``.
        t: Step being taken, from 1, a 0-d floating array.
        hyperparams: The hyperparameters.
        xp: The array namespace.
    """
    hp = hyperparams
    c = correction(t, hp, xp=xp)
    if hp.parity is not None:
        return mu / ((1 - b1_prod + hp.eps) * (xp.sqrt(e2 / c + hp.eps_root) + hp.eps))
    has_scale = e2 > 0
    # The root is taken of 1 where there is no scale, because its derivative at 0 is infinite.
    root = xp.sqrt(xp.where(has_scale, e2, xp.ones_like(e2)) / c + hp.eps_root)
    denominator = xp.where(has_scale, (1 - b1_prod) * (root + hp.eps), xp.full_like(e2, xp.inf))
    return mu / denominator


def init_lite_state(p: Array, hyperparams: STAMLiteHyperparams, *, xp: Namespace) -> STAMLiteState:
    """Return the state before the first step, in the dtype of ``p`` (its real dtype where real)."""
    zero = xp.sum(xp.zeros_like(xp.abs(p)))
    statistics = STAMLiteStatistics(
        e1=xp.sum(xp.zeros_like(p)), e2=zero, beta1=zero + hyperparams.b1_base, b1_prod=zero + 1
    )
    return STAMLiteState(xp.zeros_like(p), statistics, zero)


def lite_step(
    p: Array,
    g: Array,
    state: STAMLiteState,
    t: Array,
    refresh: Array,
    hyperparams: STAMLiteHyperparams,
    *,
    xp: Namespace,
    mean: Mean,
) -> tuple[Array, STAMLiteState]:
    """Take one step on one tensor, all of equations (1) to (5).

    Args:
        p: Parameter.
        g: Gradient, shape and dtype of ``p``.
        state: State of this tensor.
        t: Step being taken, from 1, a 0-d array of the real dtype.
        refresh: Whether beta1 is updated in this step, 0-d boolean.
        hyperparams: The hyperparameters, all of them numbers.
        xp: The array namespace.
        mean: The mean to use for the statistics.

    Returns:
        The new parameter and the new state.

    Example:
        >>> import numpy as np
        >>> hp = STAMLiteHyperparams(learning_rate=0.1)
        >>> p, g = np.asarray([1.0, 2.0]), np.asarray([0.5, -0.25])
        >>> state, first = init_lite_state(p, hp, xp=np), np.asarray(True)
        >>> p, state = lite_step(p, g, state, np.asarray(1.0), first, hp, xp=np, mean=np.mean)
        >>> p.round(4).tolist(), round(float(state.statistics.beta1), 4)
        ([0.8725, 2.0612], 0.8147)
    """
    hp = hyperparams
    if hp.parity is not None:
        g = zero_nonfinite(g, xp=xp)
    means = gradient_means(strided_sample(g, hp.stat_sample, xp=xp), xp=xp, mean=mean)
    statistics, s = update_lite_statistics(state.statistics, *means, t, refresh, hp, xp=xp)
    mu = update_momentum(g, state.mu, statistics.beta1)
    d = lite_direction(mu, statistics.e2, statistics.b1_prod, t, hp, xp=xp)
    return decayed_step(p, d, hp.learning_rate, hp.weight_decay), STAMLiteState(mu, statistics, s)
