"""From rounds to medians, ratios per round and the A/A band, and what is said of the machine."""

import platform
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from optim_bench.executors import available_cores
from optim_bench.executors.machine import processor


def summarize(measured: Mapping[str, Any], baseline: str) -> dict[str, Any]:
    """Return per label the median step and the ratio to the baseline of the same round.

    Args:
        measured: from `measure_times`.
        baseline: label of the first optimizer of the request.

    Returns:
        `"rows"`: label -> `"median"`, `"low"`, `"high"` (seconds per step, quartiles), `"ratio"`,
        `"ratio_low"`, `"ratio_high"` (median and 5 % to 95 % of the rounds), `"first"`;
        `"band"`: the 5 % to 95 % range of the baseline over its own copy; `"busy"`: whether the
        machine's load makes all of this noise.

    Example:
        >>> rounds = {"adamw": [1.0, 2.0, 4.0], "A/A": [1.0, 2.0, 4.0], "ours": [2.0, 4.0, 8.0]}
        >>> first = dict.fromkeys(rounds, 9.0)
        >>> machine = {"cores": 4}
        >>> given = {"seconds": rounds, "first": first, "load": [0.1, 2.5], "machine": machine}
        >>> result = summarize(given, "adamw")
        >>> result["rows"]["ours"]["median"], result["rows"]["ours"]["ratio"], result["band"]
        (4.0, 2.0, [1.0, 1.0])
        >>> result["busy"]
        True
    """
    base = measured["seconds"][baseline]
    rows: dict[str, dict[str, float]] = {}
    for label, seconds in measured["seconds"].items():
        ratios = sorted(a / b for a, b in zip(seconds, base, strict=True))
        ordered = sorted(seconds)
        rows[label] = {
            "median": statistics.median(ordered),
            "low": rank(ordered, 0.25),
            "high": rank(ordered, 0.75),
            "ratio": statistics.median(ratios),
            "ratio_low": rank(ratios, 0.05),
            "ratio_high": rank(ratios, 0.95),
            "first": measured["first"][label],
        }
    copy = rows.pop("A/A")
    return {
        "rows": rows,
        "band": [copy["ratio_low"], copy["ratio_high"]],
        "busy": max(measured["load"]) > BUSY_SHARE * measured["machine"]["cores"],
        "load": measured["load"],
        "machine": measured["machine"],
        "rounds": len(base),
    }


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
