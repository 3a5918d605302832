"""STAC: sign updates on the early layers, AdamW on the last ones.

Per entry, with gradient g, first moment m, second moment v, parameter p and t = 1, 2, ... the step
being taken. The sign section, with lr_s = sign_lr_scale*lr:

    m  = sm*m + (1-sm)*g                                                       (1)
    p <- p*(1 - lr_s*wd_s) - lr_s*sign(m)                                      (2)

and the AdamW section:

    m  = b1*m + (1-b1)*g                                                       (3)
    v  = b2*v + (1-b2)*|g|^2                                                   (4)
    p <- p*(1 - lr*wd_a) - lr * (m/(1-b1^t)) / (sqrt(v/(1-b2^t)) + eps)        (5)

m and v start at 0. With amsgrad, (5) takes the running maximum of v in the place of v. With
``sign_momentum=0``, (1) is m = g: the textbook signSGD, without state.

Differs from the published package (stac-optimizer 0.1.5) in:
1. the moment is computed in at least float32 and rounded once, after its sign was taken;
2. sign(nan) = nan, so that a bad gradient that is let through shows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from stam_core._power import one_minus_power
from stam_core._typing import AS_WRITTEN, Array, Exact, Namespace, Scalar
from stam_core._validate import NON_NEGATIVE, Range, check_choice, check_number

HALF_OPEN_UNIT = Range("in [0, 1)", 0.0, 1.0, open_high=True)

HYBRID_SIGN_LR_SCALE = 0.75
"""The published ratio of the two learning rates where a model has both sections."""

STACRole = Literal["sign", "adamw"]
ROLES: tuple[STACRole, ...] = ("sign", "adamw")


@dataclass(frozen=True)
class STACHyperparams:
    """The hyperparameters of STAC, checked when they are made.

    Python numbers are checked; arrays are taken as they are.

    Attributes:
        learning_rate: Step size of the AdamW section, >= 0. Torch calls it ``lr``.
        sign_momentum: Decay of the sign section's moment, in [0, 1); 0 keeps no state.
        sign_lr_scale: Step size of the sign section over ``learning_rate``, >= 0.
        b1: Decay of the AdamW section's first moment, in [0, 1).
        b2: Decay of its second moment, in [0, 1).
        eps: Added to the root of the second moment, >= 0.
        weight_decay: Decoupled weight decay of both sections, >= 0.
        sign_weight_decay: That of the sign section; None for ``weight_decay``.
        adamw_weight_decay: That of the AdamW section; None for ``weight_decay``.
        amsgrad: Divide by the running maximum of the second moment.
        maximize: Ascend.

    Raises:
        ValueError: A number is out of range.
        TypeError: A value is not a number.

    Example:
        >>> STACHyperparams(sign_momentum=1.0)
        Traceback (most recent call last):
        ...
        ValueError: sign_momentum must be in [0, 1), got 1.0: the default is 0.9
    """

    learning_rate: Scalar = 1e-3
    sign_momentum: Scalar = 0.9
    sign_lr_scale: Scalar = 1.0
    b1: Scalar = 0.9
    b2: Scalar = 0.999
    eps: Scalar = 1e-8
    weight_decay: Scalar = 0.0
    sign_weight_decay: Scalar | None = None
    adamw_weight_decay: Scalar | None = None
    amsgrad: bool = False
    maximize: bool = False

    def __post_init__(self) -> None:
        check_number("learning_rate", self.learning_rate, NON_NEGATIVE, 1e-3)
        check_number("sign_momentum", self.sign_momentum, HALF_OPEN_UNIT, 0.9)
        check_number("sign_lr_scale", self.sign_lr_scale, NON_NEGATIVE, 1.0)
        check_number("b1", self.b1, HALF_OPEN_UNIT, 0.9)
        check_number("b2", self.b2, HALF_OPEN_UNIT, 0.999)
        check_number("eps", self.eps, NON_NEGATIVE, 1e-8)
        check_number("weight_decay", self.weight_decay, NON_NEGATIVE, 0.0)
        if self.sign_weight_decay is not None:
            check_number("sign_weight_decay", self.sign_weight_decay, NON_NEGATIVE, 0.0)
        if self.adamw_weight_decay is not None:
            check_number("adamw_weight_decay", self.adamw_weight_decay, NON_NEGATIVE, 0.0)
        check_choice("amsgrad", self.amsgrad, (True, False))
        check_choice("maximize", self.maximize, (True, False))

    def decay(self, role: STACRole) -> Scalar:
        """Return the weight decay of a section.

        Example:
            >>> hp = STACHyperparams(weight_decay=0.1, sign_weight_decay=0.3)
            >>> hp.decay("sign"), hp.decay("adamw")
            (0.3, 0.1)
        """
        own = self.sign_weight_decay if role == "sign" else self.adamw_weight_decay
        return self.weight_decay if own is None else own


class SignState(NamedTuple):
    """The state of the sign section for one tensor.

    Attributes:
        mu: First moment, shape of the parameter; None without momentum.
    """

    mu: Array | None


class AdamWState(NamedTuple):
    """The state of the AdamW section for one tensor.

    Attributes:
        mu: First moment, shape of the parameter.
        nu: Second moment, shape of the parameter, real.
        nu_max: Running maximum of ``nu``; None without amsgrad.
    """

    mu: Array
    nu: Array
    nu_max: Array | None


def sign_with_nan(x: Array, *, xp: Namespace) -> Array:
    """Return the sign of ``x``, nan where ``x`` is nan; complex parts each have their own sign.

    The array API leaves the sign of nan open, and its sign of a complex number is a unit vector:
    STAC takes real and imaginary part as two entries.

    Example:
        >>> import numpy as np
        >>> sign_with_nan(np.asarray([-3.0, 0.0, 2.0, np.nan]), xp=np).tolist()
        [-1.0, 0.0, 1.0, nan]
        >>> sign_with_nan(np.asarray([-3.0 + 0.5j]), xp=np).tolist()
        [(-1+1j)]
    """
    if xp.isdtype(x.dtype, "complex floating"):
        return sign_with_nan(xp.real(x), xp=xp) + 1j * sign_with_nan(xp.imag(x), xp=xp)
    return xp.where(xp.isnan(x), x, xp.sign(x))


def update_sign_moment(
    g: Array, mu: Array, hyperparams: STACHyperparams, *, exact: Exact = AS_WRITTEN
) -> Array:
    """Return the sign section's new moment, equation (1).

    Args:
        g: Gradient, its sign turned to ascend.
        mu: First moment, same shape.
        hyperparams: The hyperparameters.
        exact: How to keep operations apart under a compiler: the sum of two rounded products has
            the same bits everywhere.

    Example:
        >>> update_sign_moment(0.5, 0.25, STACHyperparams(sign_momentum=0.5))
        0.375
    """
    sm = hyperparams.sign_momentum
    return exact.keep(sm * mu) + exact.keep((1 - sm) * g)


def sign_update(
    p: Array, g: Array, mu: Array | None, hyperparams: STACHyperparams, *, xp: Namespace
) -> tuple[Array, Array | None]:
    """Take one step of the sign section on one tensor, equations (1) and (2).

    Args:
        p: Parameter.
        g: Gradient, shape and dtype of ``p``.
        mu: First moment, same shape; None without momentum.
        hyperparams: The hyperparameters.
        xp: The array namespace.

    Returns:
        The new parameter and the new moment.

    Example:
        >>> import numpy as np
        >>> hp = STACHyperparams(learning_rate=0.1, sign_momentum=0.5, weight_decay=0.1)
        >>> p, mu = np.asarray([1.0, 2.0]), np.asarray([0.0, 0.0])
        >>> p, mu = sign_update(p, np.asarray([0.5, -0.25]), mu, hp, xp=np)
        >>> p.tolist(), mu.tolist()
        ([0.89, 2.08], [0.25, -0.125])
    """
    hp = hyperparams
    g = -g if hp.maximize else g
    if mu is not None:
        mu = update_sign_moment(g, mu, hp)
    lr = hp.sign_lr_scale * hp.learning_rate
    direction = sign_with_nan(g if mu is None else mu, xp=xp)
    return p * (1 - lr * hp.decay("sign")) - lr * direction, mu


def adamw_direction(
    g: Array, state: AdamWState, t: Scalar, hyperparams: STACHyperparams, *, xp: Namespace
) -> tuple[Array, AdamWState]:
    """Return the quotient of equation (5) and the new moments, equations (3) and (4).

    Args:
        g: Gradient, its sign turned to ascend.
        state: The moments, shape of ``g``.
        t: Step being taken, from 1.
        hyperparams: The hyperparameters.
        xp: The array namespace.
    """
    hp = hyperparams
    magnitude = xp.abs(g)
    mu = hp.b1 * state.mu + (1 - hp.b1) * g
    nu = hp.b2 * state.nu + (1 - hp.b2) * (magnitude * magnitude)
    nu_max = None if state.nu_max is None else xp.maximum(state.nu_max, nu)
    mu_hat = mu / one_minus_power(hp.b1, t, xp=xp)
    nu_hat = (nu if nu_max is None else nu_max) / one_minus_power(hp.b2, t, xp=xp)
    return mu_hat / (xp.sqrt(nu_hat) + hp.eps), AdamWState(mu, nu, nu_max)


def adamw_update(
    p: Array, g: Array, state: AdamWState, t: Scalar, hyperparams: STACHyperparams, *, xp: Namespace
) -> tuple[Array, AdamWState]:
    """Take one step of the AdamW section on one tensor, equations (3) to (5).

    Args:
        p: Parameter.
        g: Gradient, shape and dtype of ``p``.
        state: The moments.
        t: Step being taken, from 1.
        hyperparams: The hyperparameters.
        xp: The array namespace.

    Returns:
        The new parameter and the new moments.

    Example:
        >>> import numpy as np
        >>> hp = STACHyperparams(learning_rate=0.1, weight_decay=0.1)
        >>> p, g = np.asarray([1.0, 2.0]), np.asarray([0.5, -0.25])
        >>> p, state = adamw_update(p, g, init_adamw(p, hp, xp=np), 1, hp, xp=np)
        >>> p.round(6).tolist(), state.mu.round(6).tolist()
        ([0.89, 2.08], [0.05, -0.025])
    """
    hp = hyperparams
    d, state = adamw_direction(-g if hp.maximize else g, state, t, hp, xp=xp)
    lr = hp.learning_rate
    return p * (1 - lr * hp.decay("adamw")) - lr * d, state


def init_sign(p: Array, hyperparams: STACHyperparams, *, xp: Namespace) -> SignState:
    """Return the sign section's state before the first step."""
    return SignState(None if hyperparams.sign_momentum == 0 else xp.zeros_like(p))


def init_adamw(p: Array, hyperparams: STACHyperparams, *, xp: Namespace) -> AdamWState:
    """Return the AdamW section's state before the first step, ``nu`` in the real dtype of ``p``."""
    nu = xp.zeros_like(xp.abs(p))
    return AdamWState(xp.zeros_like(p), nu, nu if hyperparams.amsgrad else None)


class STACReference:
    """STAC over a flat tree of arrays, one tensor after the other: for readers and for tests.

    Every tensor of one step has the same t, that is, every gradient is given every time.

    Args:
        params: Name to array.
        roles: Name to "sign" or "adamw", for each name of ``params``.
        hyperparams: The hyperparameters.
        xp: The array namespace.

    Raises:
        ValueError: A role is unknown, or ``roles`` names other tensors than ``params``.

    Example:
        >>> import numpy as np
        >>> params = {"body": np.asarray([1.0]), "head": np.asarray([1.0])}
        >>> hp = STACHyperparams(learning_rate=0.1, sign_lr_scale=0.75)
        >>> stac = STACReference(params, {"body": "sign", "head": "adamw"}, hp, xp=np)
        >>> for _ in range(2):
        ...     stac.step({"body": np.asarray([0.5]), "head": np.asarray([0.5])})
        >>> {name: p.round(4).tolist() for name, p in stac.params.items()}
        {'body': [0.85], 'head': [0.8]}
    """

    def __init__(
        self,
        params: Mapping[str, Array],
        roles: Mapping[str, STACRole],
        hyperparams: STACHyperparams,
        *,
        xp: Namespace,
    ) -> None:
        if set(params) != set(roles):
            only = sorted(set(params) ^ set(roles))
            msg = f"params and roles must name the same tensors, got only one of them for {only}"
            raise ValueError(msg)
        for name, role in roles.items():
            check_choice(f"roles[{name!r}]", role, ROLES)
        self.params: dict[str, Array] = dict(params)
        self.roles = dict(roles)
        self.hyperparams = hyperparams
        self.count = 0
        self.state: dict[str, SignState | AdamWState] = {
            name: (init_sign if roles[name] == "sign" else init_adamw)(p, hyperparams, xp=xp)
            for name, p in params.items()
        }
        self._xp: Any = xp

    def step(self, grads: Mapping[str, Array]) -> None:
        """Take one step with one gradient for each tensor.

        Args:
            grads: Name to array, shapes and dtypes of ``params``.
        """
        self.count += 1
        hp = self.hyperparams
        for name, p in self.params.items():
            state = self.state[name]
            if isinstance(state, SignState):
                self.params[name], mu = sign_update(p, grads[name], state.mu, hp, xp=self._xp)
                self.state[name] = SignState(mu)
            else:
                self.params[name], self.state[name] = adamw_update(
                    p, grads[name], state, self.count, hp, xp=self._xp
                )


__all__ = [
    "HYBRID_SIGN_LR_SCALE",
    "ROLES",
    "AdamWState",
    "STACHyperparams",
    "STACReference",
    "STACRole",
    "SignState",
    "adamw_direction",
    "adamw_update",
    "init_adamw",
    "init_sign",
    "sign_update",
    "sign_with_nan",
    "update_sign_moment",
]
