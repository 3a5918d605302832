"""What the suite must know of each optimizer beside its cases: one row per registry name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from optim_conformance.adapter import Array
from optim_conformance.cases import Case

FirstStep = Callable[[Case, str, Array], tuple[float, Array]]


@dataclass(frozen=True)
class Facts:
    """One row.

    Attributes:
        first_step: Case, leaf and gradient to the share of the learning rate that the leaf takes,
            and to the direction of its first step, in which every average is its own first term.
        scale_free: Hyperparameters under which gradients times a constant take the same steps;
            None where there are none.
        scale_free_needs: Capabilities without which those hyperparameters do not exist.
        peak: Learning rate from which it solves the small problems.
    """

    first_step: FirstStep
    scale_free: Mapping[str, Any] | None = field(default_factory=lambda: {"eps": 1e-30})
    scale_free_needs: frozenset[str] = frozenset()
    peak: float = 0.1


def _normalised(case: Case, leaf: str, g: Array) -> tuple[float, Array]:
    """Return g over its own magnitude."""
    return 1.0, g / (np.abs(g) + 1e-8)


def _root_mean_square(case: Case, leaf: str, g: Array) -> tuple[float, Array]:
    """Return g over the root mean square of its tensor."""
    return 1.0, g / (np.sqrt(np.mean(g * g)) + 1e-8)


def _by_role(case: Case, leaf: str, g: Array) -> tuple[float, Array]:
    """Return the sign in the sign section; AdamW's in the other."""
    if case.hparams["roles"][leaf] == "sign":
        return case.hparams["sign_lr_scale"], np.sign(g)
    return _normalised(case, leaf, g)


FACTS: Mapping[str, Facts] = {
    # The published statistics of STAM add an epsilon; the corrected ones do not.
    "stam": Facts(_normalised, {"eps": 1e-30, "statistics": "corrected"}, frozenset({"corrected"})),
    "stam_lite": Facts(_root_mean_square),
    "stac": Facts(_by_role),
    "adamw": Facts(_normalised),
}
