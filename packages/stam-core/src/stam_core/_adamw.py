"""AdamW: the update of STAC's last layers.

Per entry, with gradient g, first moment m, second moment v, parameter p and t = 1, 2, ... the step
being taken:

    m  = b1*m + (1-b1)*g                                                       (1)
    v  = b2*v + (1-b2)*g^2                                                     (2)
    p <- p*(1 - lr*wd) - lr * (m/(1-b1^t)) / (sqrt(v/(1-b2^t)) + eps)          (3)

m and v start at 0. With amsgrad, (3) takes the running maximum of v in the place of v. As in
PyTorch, the real and the imaginary part of a complex entry are two entries.

Source: Loshchilov and Hutter (2019), Decoupled Weight Decay Regularization, algorithm 2.
"""

from dataclasses import dataclass

from stam_core._hyperparams import HALF_OPEN_UNIT, NON_NEGATIVE, Hyperparams, choice, number
from stam_core._power import one_minus_power
from stam_core._rule import Moment, Rule, Slots
from stam_core._sign import prepare
from stam_core._typing import Array, Exact, Namespace, Scalar


@dataclass(frozen=True, kw_only=True)
class AdamWHyperparams(Hyperparams):
    """The hyperparameters of AdamW, checked when they are made.

    Attributes:
        learning_rate: Step size, >= 0.
        weight_decay: Decoupled weight decay, >= 0.
        b1: Decay of the first moment, in [0, 1).
        b2: Decay of the second moment, in [0, 1).
        eps: Added to the root of the second moment, >= 0.
        amsgrad: Divide by the running maximum of the second moment.
        maximize: Ascend.

    Raises:
        ValueError: A number is out of range.
        TypeError: A value is not a number.

    Example:
        >>> AdamWHyperparams(b2=1.0)
        Traceback (most recent call last):
        ...
        ValueError: b2 must be in [0, 1), got 1.0: the default is 0.999
    """

    learning_rate: Scalar = number(1e-3, NON_NEGATIVE)
    weight_decay: Scalar = number(0.0, NON_NEGATIVE)
    b1: Scalar = number(0.9, HALF_OPEN_UNIT)
    b2: Scalar = number(0.999, HALF_OPEN_UNIT)
    eps: Scalar = number(1e-8, NON_NEGATIVE)
    amsgrad: bool = choice(True, False, default=False)
    maximize: bool = choice(True, False, default=False)


def accumulate(
    g: Array,
    moments: Slots,
    statistics: Slots,
    hp: AdamWHyperparams,
    /,
    *,
    xp: Namespace,
    exact: Exact,
) -> dict[str, Array]:
    """Return the moments after a step, equations (1) and (2).

    Sums of two rounded products have the same bits everywhere.
    """
    del statistics
    mu = exact.keep(hp.b1 * moments["mu"]) + exact.keep((1 - hp.b1) * g)
    nu = exact.keep(hp.b2 * moments["nu"]) + exact.keep((1 - hp.b2) * (g * g))
    if "nu_max" not in moments:
        return {"mu": mu, "nu": nu}
    return {"mu": mu, "nu": nu, "nu_max": xp.maximum(moments["nu_max"], nu)}


def direction(
    g: Array,
    moments: Slots,
    statistics: Slots,
    count: Array,
    hp: AdamWHyperparams,
    /,
    *,
    xp: Namespace,
) -> Array:
    """Return the quotient of equation (3)."""
    del g, statistics
    mu, nu = moments["mu"], moments.get("nu_max", moments["nu"])
    t = xp.astype(count, nu.dtype)
    mu_hat = mu / one_minus_power(hp.b1, t, xp=xp)
    nu_hat = nu / one_minus_power(hp.b2, t, xp=xp)
    return mu_hat / (xp.sqrt(nu_hat) + hp.eps)


ADAMW = Rule(
    name="adamw",
    hyperparams=AdamWHyperparams,
    moments=(
        Moment("mu", "exp_avg"),
        Moment("nu", "exp_avg_sq", square=True),
        Moment("nu_max", "max_exp_avg_sq", given="amsgrad", square=True),
    ),
    prepare=prepare,
    accumulate=accumulate,
    direction=direction,
    by_parts=True,
)
"""AdamW, as a record."""
