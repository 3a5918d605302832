"""A comparison that fits into the time there is, and what it can show, before it is spent.

A step of every optimizer is measured by two short runs, of which the second is warm. Then the
largest design is taken that fits: learning rates x tuning seeds, fresh seeds, and, where even the
smallest is too much, a shorter horizon. Fresh seeds are never fewer than a verdict needs.
"""

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from optim_bench.errors import BenchError, UsageError
from optim_bench.executors import Executor
from optim_bench.protocol import (
    ALPHA,
    NEIGHBOURHOOD,
    TIERS,
    Budget,
    Cell,
    Plan,
    added_of,
    family_of,
)
from optim_bench.protocol.campaign import check_task
from optim_bench.results.stats import reachable, smallest_detectable, smallest_p_value
from optim_bench.results.verdicts import detectable_in_words, searched_in_words

PROBE_STEPS = 4
# Fewer learning rates than the standard tier's, then fewer seeds for them, then both.
_STANDARD = TIERS["standard"]
DESIGNS: tuple[Budget, ...] = (
    TIERS["full"],
    _STANDARD,
    replace(_STANDARD, tuning_seeds=2),
    replace(_STANDARD, grid_points=5, tuning_seeds=2),
    TIERS["quick"],
    replace(TIERS["quick"], tuning_seeds=1),
    Budget(3, 1, 8, 4, defaults=False, halving=True),
    Budget(3, 1, 1, 4, defaults=False, halving=True),
)
SHARES = (1.0, 0.5, 0.25)
# What the shortest comparison of a tier leaves: runs are started one after the other, and a
# machine has other work.
_SLACK = 1.15
# A spread of the paired ratio from seed to seed that the built-in workloads show.
_EXAMPLE_SPREAD = 0.1
_UNITS = {"s": 1.0, "sec": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Allowance:
    """How much a comparison may take: seconds of wall clock, or optimizer steps in all."""

    amount: float
    in_steps: bool

    @classmethod
    def parse(cls, text: str) -> "Allowance":
        """Read `30min`, `90s`, `2h` or `20000steps`.

        Raises:
            UsageError: it is none of these.

        Example:
            >>> Allowance.parse("30min"), Allowance.parse("20000 steps").in_steps
            (Allowance(amount=1800.0, in_steps=False), True)
        """
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(steps|[a-z]+)", text.strip().lower())
        unit = found.group(2) if found else ""
        if found is None or (unit != "steps" and unit not in _UNITS) or not float(found.group(1)):
            raise UsageError(
                f"budget is {text!r}; write a time, such as 30min, 90s or 2h, or 20000steps"
            )
        return cls(float(found.group(1)) * _UNITS.get(unit, 1.0), unit == "steps")


@dataclass(frozen=True)
class Cost:
    """What a run of a cell takes, in seconds.

    Args:
        once: for the first run of a worker: imports and compilation.
        setup: before the first step of every run.
        step: for a step.
        evaluation: for one evaluation.
    """

    once: float
    setup: float
    step: float
    evaluation: float

    def run(self, steps: int, evaluations: int) -> float:
        """Return the seconds of one warm run."""
        return self.setup + steps * self.step + evaluations * self.evaluation


@dataclass(frozen=True)
class Forecast:
    """A plan, what it will take and what it can show.

    Args:
        plan: what would run.
        seconds: estimated wall clock.
        costs: cell name -> what a run takes.
        jobs: runs at a time.
        asked: steps that the tasks declare, by cell name.
    """

    plan: Plan
    seconds: float
    costs: Mapping[str, Cost]
    jobs: int
    asked: Mapping[str, int]

    @property
    def lines(self) -> list[str]:
        """The forecast in words."""
        budget, cells = self.plan.budget, self.plan.cells
        each = runs_of(budget)
        steps = sum(each * cell.steps for cell in cells)
        found = [
            f"Plan: {', '.join(dict.fromkeys(c.label for c in cells))} on "
            f"{', '.join(dict.fromkeys(c.workload for c in cells))}; "
            f"{searched_in_words(budget.to_json())}, then "
            f"{_count(budget.fresh_seeds, 'fresh seed')}"
            + (", at the default rates too" if budget.defaults else "")
        ]
        horizons = {f"{c.workload} {_horizon(c, self.asked[c.name])}" for c in cells}
        found.append(f"Steps per run: {', '.join(sorted(horizons))}; {steps:,} in all")
        times = ", ".join(f"{c.label} {1e3 * self.costs[c.name].step:.3g} ms" for c in cells)
        found.append(
            f"Time: about {minutes(self.seconds)}, {_count(self.jobs, 'run')} at a time; a step "
            f"takes {times}"
        )
        found += [self._shows(f) for f in dict.fromkeys(c.framework for c in cells)]
        return found

    def _shows(self, framework: str) -> str:
        tests = len(family_of(self.plan, framework)) + len(added_of(self.plan, framework))
        seeds = self.plan.budget.fresh_seeds
        if not can_reach(seeds, tests):
            return (
                f"Shows: nothing that could be called a difference: {_count(seeds, 'seed')} cannot "
                f"reach the level for {_count(tests, 'test')}; {fewest_seeds(tests)} can"
            )
        found = smallest_detectable(_EXAMPLE_SPREAD, seeds, alpha=ALPHA / max(tests, 1))
        ratio = found or 0.0  # None for one pair, which can reach no level
        times = ratio / _EXAMPLE_SPREAD
        return (
            f"Shows: {_count(seeds, 'paired seed')} and {_count(tests, 'test')} find a change of "
            f"{times:.1f} times the spread from seed to seed: of "
            f"{detectable_in_words(math.exp(ratio))} where paired losses vary by 10 %"
        )


def measure_costs(
    plan: Plan, workers: Executor, evaluations: Callable[[Cell, int], int]
) -> dict[str, Cost]:
    """Run every cell for a few steps, twice, and return what a run of it takes.

    Args:
        plan: names the cells.
        workers: with one worker, so that the second run meets what the first one left.
        evaluations: how often a run of so many steps of a cell is evaluated.

    Raises:
        BenchError: a run fails, which every longer one would do as well.
    """
    costs: dict[str, Cost] = {}
    for cell in plan.cells:
        records, walls = [], []
        for seed in (0, 1):
            spec = replace(cell.spec(cell.default_rate, seed), steps=min(PROBE_STEPS, cell.steps))
            started = time.monotonic()
            workers.submit(spec)
            records.append(workers.wait())
            walls.append(time.monotonic() - started)
            check_task(records[-1])
            if records[-1].status == "failed":
                raise BenchError(
                    f"{cell.label} on {cell.workload} fails in its first run: {records[-1].error}"
                )
        steps = records[-1].spec.steps
        seconds = records[-1].seconds
        looks = evaluations(cell, steps)
        step = seconds["loop"] / (steps - 1) if steps > 1 else seconds["first_step"]
        spent = seconds["loop"] + seconds["first_step"] + looks * seconds["evaluation"]
        setup = max(0.0, walls[1] - spent)
        costs[cell.name] = Cost(max(0.0, walls[0] - walls[1]), setup, step, seconds["evaluation"])
    return costs


def estimate(
    cells: Sequence[Cell],
    budget: Budget,
    share: float,
    costs: Mapping[str, Cost],
    jobs: int,
    evaluations: Callable[[Cell, int], int],
) -> float:
    """Return the seconds that a design would take."""
    once, rest = 0.0, 0.0
    for cell in cells:
        steps = max(1, round(share * cell.steps))
        once += costs[cell.name].once  # every worker pays it, at the same time
        rest += runs_of(budget) * costs[cell.name].run(steps, evaluations(cell, steps))
    return once + _SLACK * rest / jobs


def choose(
    plan: Plan,
    allowance: Allowance,
    costs: Mapping[str, Cost],
    jobs: int,
    evaluations: Callable[[Cell, int], int],
    seeds: int | None,
) -> tuple[Budget, float]:
    """Return the largest design that fits, and the share of the horizon.

    Args:
        plan: of the whole horizon.
        allowance: what may be spent.
        costs: as `measure_costs` returns them.
        jobs: runs at a time.
        evaluations: as `measure_costs` takes it.
        seeds: fresh seeds that the user insists on, or None.

    Raises:
        UsageError: the smallest one does not fit; the message says what it would take.
    """
    frameworks = dict.fromkeys(cell.framework for cell in plan.cells)
    least = fewest_seeds(max(len(family_of(plan, f)) for f in frameworks))
    designs = [
        replace(
            design,
            fresh_seeds=seeds or max(design.fresh_seeds, least),
            search=plan.budget.search,
        )
        for design in DESIGNS
    ]
    takes = 0.0
    for share in SHARES:
        for design in designs:
            if allowance.in_steps:
                takes = sum(max(1, round(share * c.steps)) * runs_of(design) for c in plan.cells)
            else:
                takes = estimate(plan.cells, design, share, costs, jobs, evaluations)
            if takes <= allowance.amount:
                return design, share
    need = f"{takes:,.0f} steps" if allowance.in_steps else f"about {minutes(takes)}"
    raise UsageError(
        f"the budget is too small: {_count(designs[-1].fresh_seeds, 'fresh seed')}, which a "
        f"verdict needs here, with {designs[-1].grid_points} learning rates at a quarter of the "
        f"horizon take {need}; allow more, lower the task's steps, or name fewer optimizers"
    )


def runs_of(budget: Budget) -> int:
    """Return the runs of a cell whose search has to grow once."""
    start = NEIGHBOURHOOD if budget.halving else budget.grid_points
    points = (budget.points or start) + min(1, budget.extensions)
    tuning = points * budget.rungs[0]
    for _ in budget.rungs[1:]:
        points = budget.kept(points)
        tuning += points
    return tuning + budget.fresh_seeds * (2 if budget.defaults else 1)


def can_reach(seeds: int, tests: int) -> bool:
    """Return whether so many tests of so many pairs could reach the level at all."""
    return any(reachable([smallest_p_value(seeds)] * max(tests, 1), ALPHA))


def fewest_seeds(tests: int) -> int:
    """Return the fewest fresh seeds with which every one of these tests could reach the level.

    Example:
        >>> fewest_seeds(1), fewest_seeds(3), fewest_seeds(25)
        (6, 7, 10)
    """
    return next(seeds for seeds in range(1, 21) if can_reach(seeds, tests))


def minutes(seconds: float) -> str:
    """Say a duration.

    Example:
        >>> minutes(41), minutes(400), minutes(9000)
        ('41 s', '7 min', '2.5 h')
    """
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def _horizon(cell: Cell, asked: int) -> str:
    return str(cell.steps) if cell.steps == asked else f"{cell.steps} of {asked}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
