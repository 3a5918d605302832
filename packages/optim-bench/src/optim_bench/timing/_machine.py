"""What a timing says about where it was taken, and order statistics of its rounds."""

import platform
from collections.abc import Sequence
from typing import Any

from optim_bench.executors import available_cores
from optim_bench.machine import processor

# A machine with more than this share of its cores busy gives noise.
BUSY_SHARE = 0.5


def machine() -> dict[str, Any]:
    """Return cores, architecture and processor."""
    return {
        "cores": len(available_cores()),
        "machine": platform.machine(),
        "processor": processor(),
    }


def rank(ordered: Sequence[float], share: float) -> float:
    """Return the value at a share of an ascending sequence, without interpolation.

    Example:
        >>> rank([1.0, 2.0, 3.0, 4.0, 5.0], 0.25), rank([1.0, 2.0], 0.95)
        (2.0, 2.0)
    """
    return ordered[round(share * (len(ordered) - 1))]
