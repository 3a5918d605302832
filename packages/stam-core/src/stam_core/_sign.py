"""The sign of momentum: the update of STAC's early layers.

Per entry, with gradient g, first moment m and parameter p:

    m  = sm*m + (1-sm)*g                                                       (1)
    p <- p*(1 - lr*wd) - lr*sign(m)                                            (2)

m starts at 0. With ``sign_momentum=0``, (1) is m = g: the textbook signSGD, without state. With
equal betas Lion is this rule. The real and the imaginary part of a complex entry are two entries.

Differs from the published package (stac-optimizer 0.1.5) in:
1. the moment is computed in at least float32 and rounded once, after its sign was taken;
2. sign(nan) = nan, so that a bad gradient that is let through shows.
"""

from dataclasses import dataclass
from typing import Any

from stam_core._hyperparams import HALF_OPEN_UNIT, NON_NEGATIVE, Hyperparams, choice, number
from stam_core._rule import Moment, Rule, Slots
from stam_core._typing import Array, Exact, Namespace, Scalar


@dataclass(frozen=True, kw_only=True)
class SignHyperparams(Hyperparams):
    """The hyperparameters of the sign of momentum, checked when they are made.

    Attributes:
        learning_rate: Step size, >= 0.
        weight_decay: Decoupled weight decay, >= 0.
        sign_momentum: Decay of the moment, in [0, 1); 0 keeps no state.
        maximize: Ascend.

    Raises:
        ValueError: A number is out of range.
        TypeError: A value is not a number.

    Example:
        >>> SignHyperparams(sign_momentum=1.0)
        Traceback (most recent call last):
        ...
        ValueError: sign_momentum must be in [0, 1), got 1.0: the default is 0.9
    """

    learning_rate: Scalar = number(1e-3, NON_NEGATIVE)
    weight_decay: Scalar = number(0.0, NON_NEGATIVE)
    sign_momentum: Scalar = number(0.9, HALF_OPEN_UNIT)
    maximize: bool = choice(True, False, default=False)


def prepare(g: Array, hp: Any, /, *, xp: Namespace) -> Array:
    """Return the gradient, its sign turned to ascend."""
    del xp
    return -g if hp.maximize else g


def accumulate(
    g: Array,
    moments: Slots,
    statistics: Slots,
    hp: SignHyperparams,
    /,
    *,
    xp: Namespace,
    exact: Exact,
) -> dict[str, Array]:
    """Return the moment after a step, equation (1), if one is kept.

    The sum of two rounded products has the same bits everywhere.
    """
    del statistics, xp
    sm = hp.sign_momentum
    return {m: exact.keep(sm * x) + exact.keep((1 - sm) * g) for m, x in moments.items()}


def direction(
    g: Array,
    moments: Slots,
    statistics: Slots,
    count: Array,
    hp: SignHyperparams,
    /,
    *,
    xp: Namespace,
) -> Array:
    """Return the sign of equation (2)."""
    del statistics, count, hp
    return sign_with_nan(moments.get("mu", g), xp=xp)


def sign_with_nan(x: Array, *, xp: Namespace) -> Array:
    """Return the sign of ``x``, nan where ``x`` is nan, which the array API leaves open.

    Example:
        >>> import numpy as np
        >>> sign_with_nan(np.asarray([-3.0, 0.0, 2.0, np.nan]), xp=np).tolist()
        [-1.0, 0.0, 1.0, nan]
    """
    return xp.where(xp.isnan(x), x, xp.sign(x))


SIGN = Rule(
    name="sign",
    hyperparams=SignHyperparams,
    moments=(Moment("mu", "exp_avg", given="sign_momentum"),),
    prepare=prepare,
    accumulate=accumulate,
    direction=direction,
    by_parts=True,
)
"""The sign of momentum, as a record."""
