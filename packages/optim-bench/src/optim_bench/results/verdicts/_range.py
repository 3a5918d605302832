"""Ratios and means at the ends of what a float can hold."""

import math
import statistics
from collections.abc import Sequence


def exp(value: float | None) -> float | None:
    """Return e^value, or None where it is beyond the range of a float: a bound there is none.

    Example:
        >>> exp(0.0), exp(800.0), exp(-800.0), exp(None)
        (1.0, None, None, None)
    """
    if value is None:
        return None
    try:
        found = math.exp(value)
    except OverflowError:
        return None
    return found if 0 < found < math.inf else None


def log_ratio(loss: float, baseline: float) -> float | None:
    """Return log(loss / baseline), or None where one of them is 0 or infinite.

    Example:
        >>> log_ratio(1e300, 1e-300) > 1381, log_ratio(0.0, 1.0)
        (True, None)
    """
    if not (0 < loss < math.inf and 0 < baseline < math.inf):
        return None
    ratio = loss / baseline
    return math.log(ratio) if 0 < ratio < math.inf else math.log(loss) - math.log(baseline)


def mean(values: Sequence[float]) -> float:
    """Return the mean, of values too whose sum is beyond the range of a float.

    Example:
        >>> mean([1.0, 2.0]), mean([1.5e308, 1.5e308])
        (1.5, 1.5e+308)
    """
    try:
        return statistics.fmean(values)
    except OverflowError:
        return math.fsum(value / len(values) for value in values)
