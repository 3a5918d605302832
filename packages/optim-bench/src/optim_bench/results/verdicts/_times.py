"""Step times beside the results: from a timing pass of their own, never from a sweep's workers.

`optim-bench time` measures one process at a time, warmed and interleaved; the wall clock of a sweep
says how busy the machine was. Time to target is steps to target times the median step.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from optim_bench.errors import BenchError

_STEP_TIME = ("median", "low", "high", "ratio", "ratio_low", "ratio_high")
_SOURCE = ("workload", "framework", "band", "busy", "load", "machine", "rounds")


def add_times(cells: Sequence[dict[str, Any]], times: Mapping[str, Any] | None) -> None:
    """Give each measured cell its `"step_time"` and `"seconds_to_target"`, None where unknown.

    Args:
        cells: as `measure_cell` returns them; changed in place.
        times: what `optim-bench time --json` wrote, or None.

    Raises:
        BenchError: the times are of another schema version.
    """
    rows = {
        f"{found['workload']}/{found['framework']}/{label}": row
        for found in _found(times)
        for label, row in found["rows"].items()
    }
    for cell in cells:
        row = rows.get(cell["name"])
        cell["step_time"] = None if row is None else {name: row[name] for name in _STEP_TIME}
        cell["seconds_to_target"] = _seconds(cell["steps_to_target"], row)


def time_sources(
    cells: Sequence[Mapping[str, Any]], times: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """Return where the times of these cells come from: A/A band, load, machine."""
    used = {(c["workload"], c["framework"]) for c in cells if c["step_time"] is not None}
    return [
        {name: found[name] for name in _SOURCE}
        for found in _found(times)
        if (found["workload"], found["framework"]) in used
    ]


def _found(times: Mapping[str, Any] | None) -> Sequence[Mapping[str, Any]]:
    if times is None:
        return []
    if times.get("schema_version") != 1 or "times" not in times:
        raise BenchError(
            "times.json is not what this version's `optim-bench time --json` writes; measure anew"
        )
    return times["times"]


def _seconds(
    steps: Mapping[str, Any] | None, row: Mapping[str, float] | None
) -> dict[str, Any] | None:
    if steps is None or row is None:
        return None
    reached = [None if count is None else count * row["median"] for count in steps["runs"]]
    infinite = [float("inf") if value is None else value for value in reached]
    median = statistics.median(infinite) if infinite else float("inf")
    return {"runs": reached, "median": None if median == float("inf") else median}
