"""Step times: warmed, interleaved, compilation apart, beside what a copy of the baseline shows."""

from optim_bench.report.timing._presets import PRESETS, Contender, Group
from optim_bench.report.timing._request import TimingRequest, measure_times
from optim_bench.report.timing._summary import summarize
from optim_bench.report.timing._update import preset_markdown, time_preset

__all__ = [
    "PRESETS",
    "Contender",
    "Group",
    "TimingRequest",
    "measure_times",
    "preset_markdown",
    "summarize",
    "time_preset",
]
