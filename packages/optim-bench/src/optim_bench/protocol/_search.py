"""The search of one cell: tune, extend, stop what cannot win, then run fresh seeds.

Everything here is a pure function of the cell and of the records that exist, which is why an
interrupted comparison continues where it stopped: ask for the next specs again.

Selection: mean over the tuning seeds of the log validation loss, or of what the task judges, where
a diverged or failed run counts as infinite, so one of them disqualifies its learning rate. A tie
goes to the smaller rate.

Halving: all points meet on the first tuning seed, and the better half of them on each further one,
so that what cannot win costs one run and not one per seed. Seeds are the rungs, and no run is cut
short: under a schedule that ends at 0 a large rate looks worst before the end, whoever wins there.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from optim_bench.protocol._cell import Cell, Values
from optim_bench.protocol._tiers import NEIGHBOURHOOD, Budget
from optim_bench.records import Hyperparameter, RunRecord, RunSpec

Records = Mapping[str, RunRecord]


class Phase(Enum):
    """What a cell is waiting for."""

    TUNING = "tuning"
    FRESH = "fresh seeds"
    DONE = "done"


@dataclass(frozen=True)
class Trial:
    """A point of the search with what its tuning seeds gave.

    Args:
        rate: the learning rate.
        extension: whether it was added because the best was at the edge.
        losses: seed -> validation loss, inf for a diverged or failed run.
        missing: seeds that have not run.
        values: what else was searched.
    """

    rate: float
    extension: bool
    losses: Mapping[int, float]
    missing: tuple[int, ...]
    values: Values = field(default_factory=dict[str, Hyperparameter])

    @property
    def score(self) -> float:
        """Mean log validation loss over its seeds; inf if a run diverged."""
        return self.score_on(len(self.losses))

    def score_on(self, seeds: int) -> float:
        """Return the mean log validation loss over its first so many seeds."""
        found = [self.losses[seed] for seed in sorted(self.losses)[:seeds]]
        logs = [math.log(loss) if loss > 0 else -math.inf for loss in found]
        if math.inf in logs:
            return math.inf
        return sum(logs) / len(logs)


@dataclass(frozen=True)
class Tuning:
    """State of a cell's search.

    Args:
        trials: ascending in learning rate; those that were stopped have fewer seeds.
        best: the chosen one; None while runs are missing or if every rate diverged.
        under_tuned: the best rate is still at the edge and the search may not grow further, or no
            rate trained at all. Such a cell is shown and never ranked.
        due: runs that the search takes if it grows no further.
    """

    trials: tuple[Trial, ...]
    best: Trial | None
    under_tuned: bool
    due: int

    @property
    def selected(self) -> float | None:
        """The chosen learning rate, or None."""
        return None if self.best is None else self.best.rate

    @property
    def missing(self) -> bool:
        """Whether runs are missing."""
        return any(trial.missing for trial in self.trials)


def tuning_of(cell: Cell, budget: Budget, records: Records) -> Tuning:
    """Follow the search as far as the records go.

    Step by step, each with one more tuning seed (with all at once where the budget does not halve):
    while the best rate is at the edge of all that were tried, the next one beyond is added
    (downwards if every rate diverged), as long as it lies in the planned grid or extensions are
    left, and in the cell's range; then the worse half is stopped.
    """
    half = budget.grid_points // 2
    points = _start(cell, budget)
    seeds = [0] * len(points)
    alive = list(range(len(points)))
    extensions, best, trained, at_edge = 0, 0, False, True
    trials: list[Trial] = []
    for rung in budget.rungs:
        while True:
            for index in alive:
                seeds[index] = rung
            trials = [
                _trial(cell, records, half, point, count)
                for point, count in zip(points, seeds, strict=True)
            ]
            if any(trial.missing for trial in trials):
                due = sum(seeds) + _later(budget, rung, len(alive))
                return Tuning(_ascending(trials), None, under_tuned=False, due=due)
            alive.sort(key=lambda index: (trials[index].score, trials[index].rate))
            best = alive[0]
            rate, trained = trials[best].rate, trials[best].score < math.inf
            lowest = min(trial.rate for trial in trials)
            highest = max(trial.rate for trial in trials)
            at_edge = not (trained and lowest < rate < highest)
            upwards = trained and rate == highest > lowest
            beyond = cell.position(highest) + 1 if upwards else cell.position(lowest) - 1
            planned = not cell.points and abs(beyond) <= half
            left = planned or extensions < budget.extensions
            if not (at_edge and left and _allowed(cell, beyond)):
                break
            extensions += not planned
            rest = points[best] if cell.points else {}
            points.append({**rest, "learning_rate": cell.rate(beyond)})
            seeds.append(rung)
            alive.append(len(points) - 1)
        alive = alive[: budget.kept(len(alive))] if budget.halving else alive
    chosen = trials[best] if trained else None
    return Tuning(_ascending(trials), chosen, under_tuned=at_edge, due=sum(seeds))


def phase_of(cell: Cell, budget: Budget, records: Records) -> Phase:
    """Return what the cell is waiting for."""
    if tuning_of(cell, budget, records).missing:
        return Phase.TUNING
    return Phase.FRESH if next_specs(cell, budget, records) else Phase.DONE


def next_specs(cell: Cell, budget: Budget, records: Records) -> list[RunSpec]:
    """Return the runs that can start now; none when the cell is done.

    A cell that never trained at any learning rate runs no fresh seeds; one that is merely
    under-tuned does, and shows its result beside the flag.
    """
    specs = _specs(cell, budget, tuning_of(cell, budget, records))
    return [spec for spec in specs if spec.key() not in records]


def known_specs(cell: Cell, budget: Budget, records: Records) -> list[RunSpec]:
    """Return every run that the cell is known to need so far, finished or not."""
    return _specs(cell, budget, tuning_of(cell, budget, records))


def expected_runs(cell: Cell, budget: Budget, records: Records) -> int:
    """Return how many runs the cell takes if its search grows no further."""
    tuning = tuning_of(cell, budget, records)
    if not tuning.missing:
        return len(_specs(cell, budget, tuning))
    return tuning.due + budget.fresh_seeds


def _specs(cell: Cell, budget: Budget, tuning: Tuning) -> list[RunSpec]:
    specs = [
        cell.spec(trial.rate, seed, trial.values)
        for trial in tuning.trials
        for seed in (*trial.losses, *trial.missing)
    ]
    if tuning.missing:
        return specs
    found = tuning.best
    chosen = [] if found is None else [cell.spec(found.rate, s, found.values) for s in budget.fresh]
    defaults = [cell.spec(cell.default_rate, s) for s in budget.fresh] if budget.defaults else []
    known = {spec.key() for spec in chosen}
    return [*specs, *chosen, *(spec for spec in defaults if spec.key() not in known)]


def _start(cell: Cell, budget: Budget) -> list[Values]:
    """Return the points that the search starts with."""
    if cell.points:
        return list(cell.points)
    half = budget.grid_points // 2
    grid = [p for p in range(-half, half + 1) if _allowed(cell, p)]
    if not grid:
        raise ValueError(
            f"{cell.name}: no grid point around {cell.centre:g} is in [{cell.low:g}, {cell.high:g}]"
        )
    middle = [p for p in grid if abs(p) <= NEIGHBOURHOOD // 2] if budget.halving else grid
    return [{"learning_rate": cell.rate(position)} for position in middle or grid]


def _later(budget: Budget, rung: int, points: int) -> int:
    """Return the runs of the further tuning seeds if nothing is added."""
    later = 0
    for _ in [later_rung for later_rung in budget.rungs if later_rung > rung]:
        points = budget.kept(points)
        later += points
    return later


def _allowed(cell: Cell, position: int) -> bool:
    return cell.low <= cell.rate(position) <= cell.high


def _ascending(trials: list[Trial]) -> tuple[Trial, ...]:
    return tuple(sorted(trials, key=lambda trial: trial.rate))


def _trial(cell: Cell, records: Records, half: int, point: Values, count: int) -> Trial:
    values = {name: value for name, value in point.items() if name != "learning_rate"}
    rate = float(point["learning_rate"] or 0.0)
    losses: dict[int, float] = {}
    missing: list[int] = []
    for seed in range(count):
        record = records.get(cell.spec(rate, seed, values).key())
        if record is None:
            missing.append(seed)
        else:
            value = record.metrics.get(f"val_{cell.judged}") if record.status == "ok" else None
            losses[seed] = cell.cost(value)
    extension = point not in cell.points if cell.points else abs(cell.position(rate)) > half
    return Trial(rate, extension, losses, tuple(missing), values)
