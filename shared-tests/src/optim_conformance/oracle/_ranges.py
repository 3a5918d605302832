"""The ranges that the contract gives the hyperparameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from optim_conformance.oracle._stam import PARITY

_OPEN = ("b1_base", "b2", "tau_decay", "moment_decay")
_HALF_OPEN = ("sign_momentum", "b1")
_NOT_NEGATIVE = (
    "learning_rate",
    "eps",
    "eps_root",
    "weight_decay",
    "sign_weight_decay",
    "adamw_weight_decay",
    "sign_lr_scale",
    "fallback_threshold",
)
_CHOICES: Mapping[str, tuple[Any, ...]] = {
    "statistics": ("published", "corrected"),
    "parity": (None, PARITY),
    "nonfinite": ("propagate", "zero", "skip", "raise"),
}


def check_ranges(opt: str, hparams: Mapping[str, Any]) -> None:
    """Refuse what lies outside its range.

    Raises:
        ValueError: Names the hyperparameter, the value and the range.
    """
    for name, value in hparams.items():
        allowed = _allowed(opt, name, value)
        if allowed:
            raise ValueError(f"{name} is {value!r}; it must be {allowed}")


def _allowed(opt: str, name: str, value: Any) -> str | None:
    """Return what the value should have been, None where it is fine."""
    if name in _CHOICES:
        return None if value in _CHOICES[name] else f"one of {_CHOICES[name]}"
    if name == "b2" and opt in ("stac", "adamw"):
        return None if 0 <= value < 1 else "in [0, 1)"
    if name == "learning_rate" and opt in ("stam", "stam_lite"):
        return None if 0 < value < math.inf else "finite and above 0"
    if name in _OPEN:
        return None if 0 < value < 1 else "strictly between 0 and 1"
    if name in _HALF_OPEN:
        return None if 0 <= value < 1 else "in [0, 1)"
    if name in _NOT_NEGATIVE:
        return None if 0 <= value < math.inf else "finite and not negative"
    if name == "adapt_strength":
        return None if 0 <= value <= 0.5 else "in [0, 0.5]"
    if name in ("beta1_update_interval", "stat_sample"):
        return None if value >= 1 else "at least 1"
    return None
