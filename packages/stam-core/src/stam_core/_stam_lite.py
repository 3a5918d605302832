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
from typing import Any

from stam_core._hyperparams import (
    HALF_UNIT,
    NON_NEGATIVE,
    NOT_UNDERFLOWING,
    OPEN_UNIT,
    Hyperparams,
    choice,
    integer,
    number,
)
from stam_core._power import one_minus_power
from stam_core._rule import Moment, Report, Rule, Slots, Statistic
from stam_core._stam import PARITY, clip_beta1, prepare
from stam_core._typing import Array, Exact, Mean, Namespace, Scalar


@dataclass(frozen=True, kw_only=True)
class STAMLiteHyperparams(Hyperparams):
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

    b1_base: Scalar = number(0.9, OPEN_UNIT)
    eps: Scalar = number(1e-8, NOT_UNDERFLOWING)
    weight_decay: Scalar = number(0.01, NON_NEGATIVE, schedulable=True)
    adapt_strength: Scalar = number(0.2, HALF_UNIT, schedulable=True)
    moment_decay: Scalar = number(0.99, OPEN_UNIT)
    beta1_update_interval: Scalar = integer(5)
    stat_sample: int | None = integer(None)
    parity: str | None = choice(None, PARITY, default=None)
    eps_root: Scalar = number(0.0, NON_NEGATIVE)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.parity is not None and self.stat_sample is not None:
            msg = (
                f"parity={self.parity!r} reproduces the published statistics in full, got "
                f"stat_sample={self.stat_sample!r}: leave out one of the two"
            )
            raise ValueError(msg)


def means(g: Array, /, *, xp: Namespace, mean: Mean) -> tuple[Array, Array]:
    """Return mean g and mean |g|^2."""
    magnitude = xp.abs(g)
    return mean(g), mean(magnitude * magnitude)


def advance(
    statistics: Slots,
    means: tuple[Array, ...],
    count: Array,
    hp: STAMLiteHyperparams,
    /,
    *,
    xp: Namespace,
) -> dict[str, Array]:
    """Return the statistics after a step, equations (1) to (4).

    Where this step's moments are not finite, e1 and e2 keep their values and an updated beta1 is
    ``b1_base``.
    """
    mean_g, mean_square = means
    e1 = hp.moment_decay * statistics["e1"] + (1 - hp.moment_decay) * mean_g
    e2 = hp.moment_decay * statistics["e2"] + (1 - hp.moment_decay) * mean_square
    finite = xp.logical_and(xp.isfinite(e1), xp.isfinite(e2))
    e1 = xp.where(finite, e1, statistics["e1"])
    e2 = xp.where(finite, e2, statistics["e2"])
    c = _correction(count, e2.dtype, hp, xp=xp)
    mean_hat, square_hat = xp.abs(e1 / c), e2 / c
    z = xp.clip(square_hat - mean_hat * mean_hat, 0.0, None) / (square_hat + hp.eps)
    s = z / (1 + z)
    # Of an integer count: a float32 one stops being exact at 2^24.
    due = (count - 1) % hp.beta1_update_interval == 0
    candidate = clip_beta1(s, finite, hp.b1_base, hp.adapt_strength, xp=xp)
    beta1 = xp.where(due, candidate, statistics["beta1"])
    return {"e1": e1, "e2": e2, "beta1": beta1, "b1_prod": statistics["b1_prod"] * beta1, "s": s}


def accumulate(
    g: Array,
    moments: Slots,
    statistics: Slots,
    hp: STAMLiteHyperparams,
    /,
    *,
    xp: Namespace,
    exact: Exact,
) -> dict[str, Array]:
    """Return the first moment after a step, equation (4)."""
    del hp, xp, exact
    beta1 = statistics["beta1"]
    return {"mu": beta1 * moments["mu"] + (1 - beta1) * g}


def direction(
    g: Array,
    moments: Slots,
    statistics: Slots,
    count: Array,
    hp: STAMLiteHyperparams,
    /,
    *,
    xp: Namespace,
) -> Array:
    """Return the quotient of equation (5)."""
    del g
    mu, e2, b1_prod = moments["mu"], statistics["e2"], statistics["b1_prod"]
    c = _correction(count, e2.dtype, hp, xp=xp)
    if hp.parity is not None:
        return mu / ((1 - b1_prod + hp.eps) * (xp.sqrt(e2 / c + hp.eps_root) + hp.eps))
    has_scale = e2 > 0
    # The root is taken of 1 where there is no scale, because its derivative at 0 is infinite.
    root = xp.sqrt(xp.where(has_scale, e2, xp.ones_like(e2)) / c + hp.eps_root)
    denominator = xp.where(has_scale, (1 - b1_prod) * (root + hp.eps), xp.full_like(e2, xp.inf))
    return mu / denominator


def report(statistics: Slots, xp: Namespace) -> Report:
    """Return what the statistics say: the variance is the share z*e2, and the scale sqrt(e2)."""
    s, e2 = statistics["s"], statistics["e2"]
    z = s / (1 - s)
    return Report(statistics["beta1"], z, z * e2, xp.sqrt(e2))


def _correction(count: Array, dtype: Any, hp: STAMLiteHyperparams, *, xp: Namespace) -> Array:
    """Return c of equation (1); in parity mode with the eps that the package adds to it."""
    shift = 0.0 if hp.parity is None else hp.eps
    return one_minus_power(hp.moment_decay, xp.astype(count, dtype), xp=xp) + shift


STAM_LITE = Rule(
    name="stam_lite",
    hyperparams=STAMLiteHyperparams,
    moments=(Moment("mu", "exp_avg"),),
    statistics=(
        Statistic("e1", 0.0, complex=True),
        Statistic("e2", 0.0),
        Statistic("beta1", "b1_base"),
        Statistic("b1_prod", 1.0),
        Statistic("s", 0.0),
    ),
    prepare=prepare,
    means=means,
    advance=advance,
    accumulate=accumulate,
    direction=direction,
    report=report,
)
"""STAMLite, as a record."""
