"""Bad hyperparameters, and what an implementation must say about each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optim_conformance.cases import MIXED_ROLES

NAN = float("nan")
INF = float("inf")


@dataclass(frozen=True)
class ErrorCase:
    """One bad value.

    Attributes:
        optimizer: A registry name.
        name: The hyperparameter.
        value: The bad value.
        requires: Capabilities without which the hyperparameter does not exist.
        says: What the message must contain, as a regular expression: the value.
    """

    optimizer: str
    name: str
    value: Any
    requires: frozenset[str]
    says: str

    def __str__(self) -> str:
        return f"{self.optimizer}:{self.name}={self.value!r}"

    def hparams(self) -> Mapping[str, Any]:
        """Return hyperparameters of which this one is bad."""
        roles = {"roles": MIXED_ROLES} if self.optimizer == "stac" else {}
        return {"learning_rate": 1e-3, "weight_decay": 0.0, **roles, self.name: self.value}


_OPEN = (0.0, 1.0, -0.5, 1.5, NAN)
"""Outside the open interval (0, 1)."""

_NEGATIVE = (-0.25, NAN, INF)

_TABLE: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "stam": {
        "learning_rate": (-0.25, 0.0, NAN, INF),
        "b1_base": _OPEN,
        "b2": _OPEN,
        "tau_decay": _OPEN,
        "eps": _NEGATIVE,
        "eps_root": _NEGATIVE,
        "weight_decay": _NEGATIVE,
        "adapt_strength": (-0.125, 0.75, NAN),
        "fallback_threshold": (-2.0, NAN),
        "statistics": ("debiased",),
        "parity": ("0.9.9",),
        "nonfinite": ("ignore",),
        "stat_sample": (0, -3),
    },
    "stam_lite": {
        "learning_rate": (-0.25, 0.0, NAN, INF),
        "b1_base": _OPEN,
        "moment_decay": _OPEN,
        "eps": _NEGATIVE,
        "eps_root": _NEGATIVE,
        "weight_decay": _NEGATIVE,
        "adapt_strength": (-0.125, 0.75, NAN),
        "beta1_update_interval": (0, -2),
        "parity": ("0.9.9",),
        "nonfinite": ("ignore",),
    },
    "stac": {
        "learning_rate": (-0.25, NAN),
        "sign_momentum": (1.0, -0.5, NAN),
        "sign_lr_scale": (-0.25, NAN),
        "b1": (1.0, -0.5, NAN),
        "b2": (1.0, -0.5, NAN),
        "eps": _NEGATIVE,
        "weight_decay": _NEGATIVE,
        "sign_weight_decay": _NEGATIVE,
        "adamw_weight_decay": _NEGATIVE,
        "nonfinite": ("ignore",),
        "roles": ({**MIXED_ROLES, "w": "sgd"},),
    },
}

_REQUIRES = {"statistics": "corrected", "parity": "parity", "stat_sample": "stat_sample"}
_ANY_POLICY = {"stam": "propagate", "stam_lite": "propagate", "stac": "skip"}


def _says(value: Any) -> str:
    shown = "sgd" if isinstance(value, Mapping) else value
    return re.escape(str(shown))


def _requires(opt: str, name: str) -> frozenset[str]:
    if name == "nonfinite":
        return frozenset({_ANY_POLICY[opt]})
    return frozenset({_REQUIRES[name]} if name in _REQUIRES else ())


ERRORS: tuple[ErrorCase, ...] = tuple(
    ErrorCase(opt, name, value, _requires(opt, name), _says(value))
    for opt, rows in _TABLE.items()
    for name, values in rows.items()
    for value in values
)
