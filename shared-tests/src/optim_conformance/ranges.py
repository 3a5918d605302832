"""What the contract allows a hyperparameter, and values that it does not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

NAN = float("nan")
INF = float("inf")


@dataclass(frozen=True)
class Range:
    """The range of one hyperparameter.

    Attributes:
        allows: Whether a value is in it.
        says: What it is, in words.
        bad: Values that must be refused, with a message that shows them.
        capability: Without this word an implementation does not have the hyperparameter.
    """

    allows: Callable[[Any], bool]
    says: str
    bad: tuple[Any, ...] = ()
    capability: str = ""

    def check(self, name: str, value: Any) -> None:
        """Refuse what lies outside.

        Raises:
            ValueError: Names the hyperparameter, the value and the range.
        """
        if not self.allows(value):
            raise ValueError(f"{name} is {value!r}; it must be {self.says}")

    def but(self, *bad: Any) -> Range:
        """Return the range with other bad values."""
        return replace(self, bad=bad)


OPEN = Range(lambda x: 0 < x < 1, "strictly between 0 and 1", (0.0, 1.0, -0.5, 1.5, NAN))
HALF_OPEN = Range(lambda x: 0 <= x < 1, "in [0, 1)", (1.0, -0.5, NAN))
POSITIVE = Range(lambda x: 0 < x < math.inf, "finite and above 0", (-0.25, 0.0, NAN, INF))
NOT_NEGATIVE = Range(lambda x: 0 <= x < math.inf, "finite and not negative", (-0.25, NAN, INF))


def interval(low: float, high: float, *bad: Any) -> Range:
    """Return a closed interval."""
    return Range(lambda x: low <= x <= high, f"in [{low:g}, {high:g}]", bad)


def at_least(low: int, *bad: Any, capability: str = "") -> Range:
    """Return whole numbers from `low` on."""
    return Range(lambda x: x >= low, f"at least {low}", bad, capability)


def choice(*values: Any, bad: tuple[Any, ...] = (), capability: str = "") -> Range:
    """Return a few values."""
    return Range(lambda x: x in values, f"one of {values}", bad, capability)


NONFINITE = choice("propagate", "zero", "skip", "raise", bad=("ignore",))
