"""How far a run may be from the oracle, and why.

A tolerance is relative to the largest entry of the expected array, because an entry near 0 in a
tensor of large ones carries the absolute rounding error of its neighbours' scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from optim_conformance.adapter import Array
from optim_conformance.rules import SLOTS


@dataclass(frozen=True)
class Tolerance:
    """A bound on max|actual - expected| / max|expected|, and its reason."""

    bound: float
    reason: str


_F32_P = "24 steps, each with up to three roundings on the parameter's scale (3e-8 each)"

# About three times what the implementations of this repository reach.
_FLOAT32 = {
    "params": Tolerance(3e-6, _F32_P),
    "update": Tolerance(1e-6, "a few roundings in each of 8 updates, relative to the updates"),
    "cancelled update": Tolerance(
        2e-5, "1-b2^t formed in float32 is off by 3e-5, and an update by the half of that"
    ),
    "count": Tolerance(0.0, "an integer"),
    "limit": Tolerance(4e-6, _F32_P.replace("24", "60") + ", on both sides of the limit"),
    "reordered": Tolerance(1e-6, "the same sums in another order, in both runs"),
    **{name: Tolerance(slot.bound, slot.reason) for name, slot in SLOTS.items()},
}
# Five times the ratio of the units in the last place.
_F64 = "float64 on both sides: a few roundings per step, added up over 24 steps"
_FLOAT64 = {key: Tolerance(t.bound * 1e-8, _F64) for key, t in _FLOAT32.items()}


def free_running(dtype: str, slot: str) -> Tolerance:
    """Return the tolerance of a whole trajectory in float32 or float64.

    Args:
        dtype: "float32" or "float64".
        slot: "params", a state slot without its leaf, or another row of the table.

    Example:
        >>> free_running("float64", "params").bound < free_running("float32", "params").bound
        True
    """
    return {"float32": _FLOAT32, "float64": _FLOAT64}[dtype][slot]


def single_step(storage: np.dtype[np.generic], slot: str) -> Tolerance:
    """Return the tolerance of one step that starts from the run's own previous state.

    Args:
        storage: The dtype in which the slot is stored.
        slot: A parameter's name, or a state slot without its leaf.
    """
    if slot == "count":
        return _FLOAT32["count"]
    unit = float(ml_dtypes.finfo(storage).eps)
    if unit > 1e-5:
        return Tolerance(
            unit,
            "half a unit of its storage for the result, and half a unit for an update or a decayed "
            "value that is rounded before",
        )
    return Tolerance(2e-5, "float32 arithmetic, one step; terms of a mean may cancel")


def distance(actual: Array, expected: Array, scale: float = 0.0) -> float:
    """Return max|actual - expected| / max|expected|, inf where NaN patterns or infinities differ.

    A `scale` above max|expected| takes its place: a mean of signed terms is only as exact as the
    terms are large.

    Example:
        >>> distance(np.array([1.0, 2.1]), np.array([1.0, 2.0])).__round__(6)
        0.05
        >>> distance(np.array([1.0, np.nan]), np.array([1.0, 2.0]))
        inf
    """
    wide = np.complex128 if np.iscomplexobj(expected) else np.float64
    a, e = np.asarray(actual).astype(wide), np.asarray(expected).astype(wide)
    if a.shape != e.shape:
        return float("inf")
    same = (np.isnan(a) & np.isnan(e)) | (a == e)
    if same.all():
        return 0.0
    scale = max([scale, *np.abs(e[np.isfinite(e)]).tolist()])
    a, e = a[~same], e[~same]
    if not (np.isfinite(a).all() and np.isfinite(e).all()):
        return float("inf")
    return float("inf") if scale == 0 else float(np.abs(a - e).max()) / scale
