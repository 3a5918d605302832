"""Step times: warmed, interleaved, compilation apart, beside what a copy of the baseline shows."""

from optim_bench.timing._request import TimingRequest, measure_times
from optim_bench.timing._summary import summarize

__all__ = ["TimingRequest", "measure_times", "summarize"]
