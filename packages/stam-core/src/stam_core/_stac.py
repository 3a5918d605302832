"""STAC: the sign of momentum on the early layers, AdamW on the last ones.

Both have one learning rate; that of the sign section is multiplied by ``sign_lr_scale``.
"""

from dataclasses import dataclass, replace
from typing import Literal, Self

from stam_core._adamw import AdamWHyperparams
from stam_core._hyperparams import NON_NEGATIVE, number
from stam_core._sign import SignHyperparams
from stam_core._typing import Scalar

HYBRID_SIGN_LR_SCALE = 0.75
"""The published ratio of the two learning rates where a model has both sections."""

STACRole = Literal["sign", "adamw"]
ROLES: tuple[STACRole, ...] = ("sign", "adamw")


@dataclass(frozen=True, kw_only=True)
class STACHyperparams(SignHyperparams, AdamWHyperparams):
    """The hyperparameters of STAC: those of its sections, and how these differ.

    Attributes:
        sign_lr_scale: Step size of the sign section over ``learning_rate``, >= 0.
        sign_weight_decay: Decay of the sign section, >= 0; None for ``weight_decay``.
        adamw_weight_decay: Decay of the AdamW section, >= 0; None for ``weight_decay``.

    Raises:
        ValueError: A number is out of range.
        TypeError: A value is not a number.

    Example:
        >>> STACHyperparams(sign_lr_scale=-1)
        Traceback (most recent call last):
        ...
        ValueError: sign_lr_scale must be >= 0 and finite, got -1: the default is 1.0
    """

    sign_lr_scale: Scalar = number(1.0, NON_NEGATIVE)
    sign_weight_decay: Scalar | None = number(None, NON_NEGATIVE)
    adamw_weight_decay: Scalar | None = number(None, NON_NEGATIVE)

    def section(self, role: STACRole) -> Self:
        """Return the hyperparameters of a section, with its own step size and decay.

        Example:
            >>> hp = STACHyperparams(sign_lr_scale=0.5, weight_decay=0.1, sign_weight_decay=0.3)
            >>> [(hp.section(role).learning_rate, hp.section(role).weight_decay) for role in ROLES]
            [(0.0005, 0.3), (0.001, 0.1)]
        """
        scale, own = 1.0, self.adamw_weight_decay
        if role == "sign":
            scale, own = self.sign_lr_scale, self.sign_weight_decay
        decay = self.weight_decay if own is None else own
        return replace(self, learning_rate=scale * self.learning_rate, weight_decay=decay)
