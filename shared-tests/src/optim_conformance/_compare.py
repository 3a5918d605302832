"""Comparisons that say which leaf is off, by how much, and why that much was not allowed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from optim_conformance.adapter import Array, Tree
from optim_conformance.tolerances import Tolerance, distance, single_step


def slot_of(key: str) -> str:
    """Return the slot of a canonical state key: `mu` of `mu/w`."""
    return key.split("/", 1)[0]


def same_names(actual: Tree, expected: Tree, what: str) -> None:
    """Fail unless both trees have the same leaves."""
    missing, extra = sorted(set(expected) - set(actual)), sorted(set(actual) - set(expected))
    assert not missing, f"{what}: missing {missing}"
    assert not extra, f"{what}: unknown {extra}; optim_conformance.adapter lists the slots"


def close(actual: Tree, expected: Tree, tolerance: Callable[[str], Tolerance], what: str) -> None:
    """Fail unless every array is within its tolerance of the expected one."""
    same_names(actual, expected, what)
    problems: list[str] = []
    for key, value in expected.items():
        allowed = tolerance(key)
        off = distance(actual[key], value, _scale(key, expected))
        if not off <= allowed.bound:
            problems.append(
                f"  {key}: off by {off:.3g}, allowed {allowed.bound:.3g} ({allowed.reason})\n"
                f"    got      {_short(actual[key])}\n    expected {_short(value)}"
            )
    assert not problems, f"{what}:\n" + "\n".join(problems)


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


def _scale(key: str, expected: Tree) -> float:
    """Return the scale of the terms of a signed mean: the root mean square, for e1."""
    slot, _, leaf = key.partition("/")
    return float(np.sqrt(expected[f"e2/{leaf}"])) if slot == "e1" else 0.0


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
