"""The sections of a report: which charts, under which heading, with which explanation."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from optim_bench.report.pages._chart import Chart
from optim_bench.report.pages._charts import curves, forest, sensitivity
from optim_bench.report.pages._charts_cost import pareto, pareto_time
from optim_bench.report.pages._charts_search import profile, reach, search


@dataclass(frozen=True)
class ChartGroup:
    """Charts of one kind.

    Args:
        draw: gives the charts of a framework.
        heading: of the section.
        explain: what to read from it, in a sentence or two.
        wide: whether a chart takes the whole width.
    """

    draw: Callable[[Mapping[str, Any], str], Iterator[Chart]]
    heading: str
    explain: str
    wide: bool = False


GROUPS = (
    ChartGroup(
        forest,
        "Relative to equally tuned AdamW",
        "Each line is an interval at the level that Holm's correction leaves the test; the 95 % "
        "interval before it is in the tooltip and in the table. The axis ends at a factor of 10; "
        "what goes beyond it is drawn to its end.",
        wide=True,
    ),
    ChartGroup(
        pareto,
        "Loss against memory",
        "Down is a lower loss, left is less optimizer state. Bars are the intervals of the "
        "verdicts; the dashed line joins the optimizers that no other one beats in both. "
        "Optimizers with states of one size stand side by side.",
    ),
    ChartGroup(
        pareto_time,
        "Loss against step time",
        "Whole training steps, from a timing pass of its own. In the grey band AdamW differs from "
        "a copy of itself: a difference inside it is noise.",
    ),
    ChartGroup(
        sensitivity,
        "How much the learning rate matters",
        "Validation loss of the tuning seeds: geometric mean and range; the mark is the selected "
        "rate, a cross at the top a rate that diverged or failed on a seed. A rate that was "
        "stopped has fewer seeds. A loss above 1,000 times the highest of the calmest learning "
        "curve is drawn at the end of the axis.",
    ),
    ChartGroup(
        search,
        "How cheap the search is",
        "The best of so many learning rates drawn at random from those tried, on the tuning seeds "
        "that all of them had: expected validation loss and quartiles. A line starts where no "
        "draw could have diverged throughout.",
    ),
    ChartGroup(
        curves,
        "Learning curves",
        "Validation loss of the fresh seeds: median and quartiles. Schedules end at 0, so only the "
        "end of a curve compares optimizers.",
    ),
    ChartGroup(
        reach,
        "Seeds at the target",
        "The target was fixed with the workload. A seed that missed it is counted as missing it, "
        "at no number of steps. Steps depend on the schedule, which is the same for everyone.",
    ),
    ChartGroup(
        profile,
        "Steps to the target",
        "Share of (workload, seed) solved within a factor of the fastest. A profile depends on who "
        "takes part.",
        wide=True,
    ),
)


def all_charts(results: Mapping[str, Any], framework: str) -> Iterator[Chart]:
    """Give every chart of a framework."""
    for group in GROUPS:
        yield from group.draw(results, framework)
