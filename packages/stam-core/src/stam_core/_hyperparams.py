"""Hyperparameters: a frozen dataclass per rule, whose fields carry default and range.

Only Python and NumPy numbers are checked. Arrays pass: under ``jax.jit`` they are tracers, whose
value is not known while the optimizer is built. Callables pass where a schedule is allowed.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any, TypeAlias

from stam_core._typing import Scalar


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
HALF_OPEN_UNIT = Range("in [0, 1)", 0.0, 1.0, open_high=True)
HALF_UNIT = Range("in [0, 0.5]", 0.0, 0.5)

Check: TypeAlias = Callable[[str, Any], None]
"""Raises unless a value is allowed; takes its name and the value."""


def number(default: float | None, allowed: Range, *, schedulable: bool = False) -> Any:
    """Declare a number.

    Args:
        default: Its default; where that is None, None passes.
        allowed: Where it must lie.
        schedulable: Whether a callable of the step passes, for the frameworks to evaluate.
    """

    def check(name: str, value: Any) -> None:
        if (schedulable and callable(value)) or (default is None and value is None):
            return
        if isinstance(value, bool) or not isinstance(value, Real):
            if hasattr(value, "dtype"):
                return
            raise TypeError(_not_a("a number", name, value, default))
        if float(value) not in allowed:
            msg = f"{name} must be {allowed.text}, got {value!r}: the default is {default!r}"
            raise ValueError(msg)

    return _declared(default, check, allowed=allowed, schedulable=schedulable)


def integer(default: int | None) -> Any:
    """Declare an integer >= 1; None passes, and an array does not, where None is the default."""
    optional = default is None

    def check(name: str, value: Any) -> None:
        if optional and value is None:
            return
        if isinstance(value, bool) or not isinstance(value, Integral):
            if hasattr(value, "dtype") and not optional:
                return
            kind = "an integer or None" if optional else "an integer"
            raise TypeError(_not_a(kind, name, value, default))
        if value < 1:
            msg = f"{name} must be >= 1, got {value!r}: the default is {default!r}"
            raise ValueError(msg)

    return _declared(default, check, is_integer=True)


def choice(*choices: Any, default: Any) -> Any:
    """Declare one of a few values."""

    def check(name: str, value: Any) -> None:
        if value not in choices:
            options = " or ".join(repr(choice) for choice in choices)
            msg = f"{name} must be {options}, got {value!r}"
            raise ValueError(msg)

    return _declared(default, check)


def _declared(
    default: Any,
    check: Check,
    *,
    allowed: Range | None = None,
    schedulable: bool = False,
    is_integer: bool = False,
) -> Any:
    facts = {"check": check, "range": allowed, "schedulable": schedulable, "is_integer": is_integer}
    return field(default=default, metadata=facts)


def _not_a(kind: str, name: str, value: Any, default: Any) -> str:
    got = f"got {value!r} ({type(value).__name__})"
    return f"{name} must be {kind}, {got}: the default is {default!r}"


@dataclass(frozen=True, kw_only=True)
class Hyperparams:
    """Base of the hyperparameters of a rule: checks each field by what it declares.

    Python numbers are checked; arrays (tracers under ``jax.jit``) are taken as they are. A subclass
    is a frozen dataclass whose fields are declared by :func:`number`, :func:`integer` and
    :func:`choice`.

    Attributes:
        learning_rate: Step size, > 0, or a callable of the step.
        weight_decay: Decoupled weight decay, >= 0, or a callable of the step.

    Raises:
        ValueError: A number is out of range.
        TypeError: A value is not a number.
    """

    learning_rate: Scalar = number(1e-3, POSITIVE, schedulable=True)
    weight_decay: Scalar = number(0.0, NON_NEGATIVE, schedulable=True)

    def __post_init__(self) -> None:
        for declared in fields(self):
            declared.metadata["check"](declared.name, getattr(self, declared.name))
