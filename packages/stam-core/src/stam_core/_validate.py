"""Range checks of hyperparameters, with one form of message for all of them.

Only Python and NumPy numbers are checked. Arrays pass: under ``jax.jit`` they are tracers, whose
value is not known while the optimizer is built. Callables pass where a schedule is allowed.
"""

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any


@dataclass(frozen=True)
class Range:
    """An interval: its text in messages, and its bounds."""

    text: str
    low: float
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        """Tell whether ``value`` lies inside; NaN never does."""
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below


POSITIVE = Range("> 0 and finite", 0.0, open_low=True, open_high=True)
NOT_UNDERFLOWING = Range(">= 1e-30 and finite", 1e-30, open_high=True)
NON_NEGATIVE = Range(">= 0 and finite", 0.0, open_high=True)
OPEN_UNIT = Range("in the open interval (0, 1)", 0.0, 1.0, open_low=True, open_high=True)
HALF_UNIT = Range("in [0, 0.5]", 0.0, 0.5)


def check_number(name: str, value: Any, allowed: Range, default: float) -> None:
    """Raise unless ``value`` is a number inside ``allowed``, or an array.

    Raises:
        TypeError: ``value`` is neither a number nor an array.
        ValueError: ``value`` lies outside the range.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        if hasattr(value, "dtype"):
            return
        got = f"got {value!r} ({type(value).__name__})"
        msg = f"{name} must be a number, {got}: the default is {default!r}"
        raise TypeError(msg)
    if float(value) not in allowed:
        msg = f"{name} must be {allowed.text}, got {value!r}: the default is {default!r}"
        raise ValueError(msg)


def check_schedulable(name: str, value: Any, allowed: Range, default: float) -> None:
    """Do as :func:`check_number`, and let a schedule (a callable of the step) pass."""
    if not callable(value):
        check_number(name, value, allowed, default)


def check_count(name: str, value: Any, default: int | None, *, optional: bool = False) -> None:
    """Raise unless ``value`` is an integer >= 1, an array, or (if ``optional``) None.

    Raises:
        TypeError: ``value`` is not an integer.
        ValueError: ``value`` is below 1.
    """
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, Integral):
        if hasattr(value, "dtype") and not optional:
            return
        kind = "an integer or None" if optional else "an integer"
        got = f"got {value!r} ({type(value).__name__})"
        msg = f"{name} must be {kind}, {got}: the default is {default!r}"
        raise TypeError(msg)
    if value < 1:
        msg = f"{name} must be >= 1, got {value!r}: the default is {default!r}"
        raise ValueError(msg)


def check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Raise unless ``value`` is one of ``choices``.

    Raises:
        ValueError: It is not.
    """
    if value not in choices:
        options = " or ".join(repr(choice) for choice in choices)
        msg = f"{name} must be {options}, got {value!r}"
        raise ValueError(msg)
