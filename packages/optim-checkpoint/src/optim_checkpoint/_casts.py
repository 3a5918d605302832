# pyright: strict
"""Which stored dtype may become which other one."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from optim_checkpoint._header import BITS

SAFE = "safe"
# Bits of exponent and mantissa: a format that has as many of both has every value of the other.
_FLOATS: Mapping[str, tuple[int, int]] = {
    "F8_E8M0": (8, 0),
    "F8_E5M2": (5, 2),
    "F8_E5M2FNUZ": (5, 2),
    "F8_E4M3": (4, 3),
    "F8_E4M3FNUZ": (4, 3),
    "BF16": (8, 7),
    "F16": (5, 10),
    "F32": (8, 23),
    "F64": (11, 52),
}
_INTEGER = re.compile(r"[IU][0-9]+\Z")


def is_float(dtype: str) -> bool:
    """Say whether a stored dtype is one of real floating-point numbers."""
    return dtype in _FLOATS


def lossless(one: str, other: str) -> bool:
    """Say whether every value of a stored dtype is one of another, of the same kind.

    Example:
        >>> lossless("BF16", "F32"), lossless("F16", "BF16"), lossless("U8", "I16")
        (True, False, True)
    """
    if one == other:
        return True
    if one in _FLOATS and other in _FLOATS:
        # Formats of eight bits have no infinities, other biases or no zero: none holds another.
        wider = BITS[other] > 8
        return wider and all(a <= b for a, b in zip(_FLOATS[one], _FLOATS[other], strict=True))
    if not (_INTEGER.match(one) and _INTEGER.match(other)) or BITS[one] >= BITS[other]:
        return False
    return one[0] == other[0] or one[0] == "U"


@dataclass(frozen=True, slots=True)
class Casting:
    """What may be converted.

    Attributes:
        rule: None is nothing; `SAFE` is what `lossless` says; a stored dtype is any float to it.
    """

    rule: str | None = None

    def allows(self, stored: str, live: str | None) -> bool:
        """Say whether a stored dtype may become that of what it is loaded into."""
        if stored == live:
            return True
        if self.rule is None or live is None:
            return False
        if self.rule == SAFE:
            return lossless(stored, live)
        return live == self.rule and is_float(stored) and is_float(live)
