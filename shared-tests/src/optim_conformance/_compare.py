"""Comparisons that say which leaf is off, by how much, and why that much was not allowed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from optim_conformance.adapter import Array, Tree
from optim_conformance.rules import SLOTS
from optim_conformance.tolerances import Tolerance, distance, single_step


def slot_of(key: str) -> str:
    """Return the slot of a canonical state key: `mu` of `mu/w`."""
    return key.split("/", 1)[0]


def same_names(actual: Tree, expected: Tree, what: str) -> None:
    """Fail unless both trees have the same leaves."""
    missing, extra = sorted(set(expected) - set(actual)), sorted(set(actual) - set(expected))
    assert not missing, f"{what}: missing {missing}"
    assert not extra, f"{what}: unknown {extra}; the rule's file lists its slots"


def close(
    actual: Tree,
    expected: Tree,
    tolerance: Callable[[str], Tolerance],
    what: str,
    terms: Mapping[str, float] | None = None,
) -> None:
    """Fail unless every array is within its tolerance of the expected one.

    Args:
        actual: The run's arrays.
        expected: The oracle's.
        tolerance: Key to tolerance.
        what: Where this is, for the message.
        terms: Key to the size of the terms of a signed average, whose own size may be far below.
    """
    same_names(actual, expected, what)
    problems: list[str] = []
    for key, value in expected.items():
        allowed = tolerance(key)
        scale = (terms or {}).get(key, 0.0)
        root = SLOTS[slot_of(key)].root if slot_of(key) in SLOTS else ""
        if root:
            scale = max(scale, float(np.sqrt(expected[f"{root}/{key.partition('/')[2]}"])))
        off = distance(actual[key], value, scale)
        if not off <= allowed.bound:
            problems.append(
                f"  {key}: off by {off:.3g}, allowed {allowed.bound:.3g} ({allowed.reason})\n"
                f"    got      {_short(actual[key])}\n    expected {_short(value)}"
            )
    assert not problems, f"{what}:\n" + "\n".join(problems)


class Terms:
    """The size of the terms of the signed averages, as far as they still remember it."""

    def __init__(self) -> None:
        self._sizes: dict[str, float] = {}

    def after(self, grads: Tree) -> dict[str, float]:
        """Return the size per state key after a step with these gradients."""
        for leaf, g in grads.items():
            now = float(np.abs(g.astype(np.complex128)).max(initial=0.0))
            # 0.95 is the slowest momentum of the cases: an older gradient weighs less.
            self._sizes[leaf] = max(now, 0.95 * self._sizes.get(leaf, 0.0))
        signed = [name for name, slot in SLOTS.items() if slot.signed]
        return {f"{slot}/{leaf}": v for slot in signed for leaf, v in self._sizes.items()}


def close_to_storage(
    actual: Tree, expected: Tree, before: Tree, *, step_size: float, what: str
) -> None:
    """Fail unless each entry is the expected one up to the rounding of its own storage.

    Args:
        actual: Parameters and state after one step.
        expected: The same by the oracle, unrounded.
        before: The same before the step; an entry is rounded on the larger of both scales.
        step_size: Learning rate, the scale of an update that is rounded before it is added.
        what: Where this is, for the message.
    """
    same_names(actual, expected, what)
    problems: list[str] = []
    for key, value in expected.items():
        got = actual[key].astype(np.float64)
        old = before[key].astype(np.float64) if key in before else np.zeros(value.shape)
        tolerance = single_step(actual[key].dtype, slot_of(key))
        moved = step_size if "/" not in key and key != "count" else 0.0
        size = np.maximum(np.abs(value), np.abs(old)) + moved
        bad = ~(np.abs(got - value) <= tolerance.bound * size)
        if bad.any():
            problems.append(
                f"  {key}: {int(bad.sum())} of {bad.size} entries off by more than "
                f"{tolerance.bound:.3g} of their size ({tolerance.reason})\n"
                f"    got      {_short(got[bad])}\n    expected {_short(value[bad])}"
            )
    assert not problems, f"{what}:\n" + "\n".join(problems)


def identical(actual: Tree, expected: Tree, what: str) -> None:
    """Fail unless names, dtypes, shapes and every bit agree."""
    same_names(actual, expected, what)
    problems = [
        f"  {key}: {_short(actual[key])} != {_short(value)}"
        for key, value in expected.items()
        if actual[key].dtype != value.dtype
        or actual[key].shape != value.shape
        or actual[key].tobytes() != value.tobytes()
    ]
    assert not problems, f"{what}:\n" + "\n".join(problems)


def _short(x: Array) -> str:
    flat = np.asarray(x).reshape(-1)
    dots = ", ..." if flat.size > 4 else ""
    return f"{x.dtype}{list(x.shape)} [{', '.join(f'{v:.9g}' for v in flat[:4].tolist())}{dots}]"
