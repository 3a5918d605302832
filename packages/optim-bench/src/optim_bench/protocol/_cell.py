"""One optimizer on one workload: tune, extend the grid, then run fresh seeds.

Everything here is a pure function of the cell and of the records that exist, which is why an
interrupted comparison continues where it stopped: ask for the next specs again.

Selection: mean over the tuning seeds of the log validation loss, or of what the task judges, where
a diverged or failed run counts as infinite, so one of them disqualifies its learning rate. A tie
goes to the smaller rate.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from optim_bench.protocol._tiers import Budget
from optim_bench.records import Hyperparameter, RunRecord, RunSpec

Records = Mapping[str, RunRecord]
# What a plan does not write down.
_LEFT_OUT: Mapping[str, Any] = {
    "source": None,
    "task": None,
    "judged": "loss",
    "larger_is_better": False,
}


class Phase(Enum):
    """What a cell is waiting for."""

    TUNING = "tuning"
    FRESH = "fresh seeds"
    DONE = "done"


@dataclass(frozen=True)
class Cell:
    """One optimizer on one workload.

    Args:
        workload: registry name.
        workload_version: as the workload declares it.
        framework: `"jax"` or `"torch"`.
        optimizer: registry name or `"module:factory"`.
        label: what people call it: the optimizer's name, with the hyperparameters set by hand.
        hyperparameters: the authors' defaults (or the user's), with `"learning_rate"`.
        centre: learning rate at the middle of the grid.
        low: smallest learning rate that may be tried.
        high: largest learning rate that may be tried.
        steps: horizon of every run.
        schedule: `"cosine"` or `"constant"`.
        source: as `RunSpec` has it.
        task: as `RunSpec` has it.
        judged: the metric that chooses and judges.
        larger_is_better: whether a larger value of it is the better one.
    """

    workload: str
    workload_version: int
    framework: str
    optimizer: str
    label: str
    hyperparameters: Mapping[str, Hyperparameter]
    centre: float
    low: float
    high: float
    steps: int
    schedule: str
    source: str | None = None
    task: str | None = None
    judged: str = "loss"
    larger_is_better: bool = False

    @property
    def name(self) -> str:
        """The cell in words, unique within a plan."""
        return f"{self.workload}/{self.framework}/{self.label}"

    def rate(self, position: int) -> float:
        """Return the learning rate at a grid position: half a decade per unit, 0 is the centre.

        Three significant digits, so that every machine asks for the same number.

        Example:
            >>> rate = {"learning_rate": 1e-3}
            >>> cell = Cell("w", 1, "jax", "o", "o", rate, 1e-3, 0, 1, 10, "cosine")
            >>> [cell.rate(position) for position in (-2, -1, 0, 1)]
            [0.0001, 0.000316, 0.001, 0.00316]
        """
        return float(f"{self.centre * 10 ** (position / 2):.3g}")

    def spec(self, rate: float, seed: int) -> RunSpec:
        """Return the run of this cell at a learning rate and seed."""
        return RunSpec(
            workload=self.workload,
            workload_version=self.workload_version,
            framework=self.framework,
            optimizer=self.optimizer,
            hyperparameters={**self.hyperparameters, "learning_rate": rate},
            seed=seed,
            steps=self.steps,
            schedule=self.schedule,
            source=self.source,
            task=self.task,
        )

    @property
    def default_rate(self) -> float:
        """The learning rate of the authors' defaults."""
        return float(self.hyperparameters["learning_rate"] or 0.0)

    def to_json(self) -> dict[str, Any]:
        """Return the cell as a plain dictionary."""
        values = {**vars(self), "hyperparameters": dict(self.hyperparameters)}
        return {name: value for name, value in values.items() if _LEFT_OUT.get(name, name) != value}

    def cost(self, value: float | None) -> float:
        """Return what is judged as a number that is the better the smaller it is.

        Where a larger value is better it is its reciprocal, so that ratios stay ratios; what a
        diverged or failed run does not have is infinite.

        Example:
            >>> rate = {"learning_rate": 1e-3}
            >>> cell = Cell(
            ...     "w", 1, "jax", "o", "o", rate, 1e-3, 0, 1, 10, "cosine", larger_is_better=True
            ... )
            >>> cell.cost(0.8), cell.cost(None)
            (1.25, inf)
        """
        if value is None:
            return math.inf
        if not self.larger_is_better:
            return value
        return 1 / value if value > 0 else math.inf


@dataclass(frozen=True)
class Trial:
    """One learning rate with what its tuning seeds gave.

    Args:
        rate: the learning rate.
        extension: whether it was added because the best was at the edge of the grid.
        losses: seed -> validation loss, inf for a diverged or failed run.
        missing: seeds that have not run.
    """

    rate: float
    extension: bool
    losses: Mapping[int, float]
    missing: tuple[int, ...]

    @property
    def score(self) -> float:
        """Mean log validation loss; inf if a run diverged."""
        logs = [math.log(loss) if loss > 0 else -math.inf for loss in self.losses.values()]
        if math.inf in logs:
            return math.inf
        return sum(logs) / len(logs)


@dataclass(frozen=True)
class Tuning:
    """State of a cell's search.

    Args:
        trials: ascending in learning rate.
        selected: the chosen learning rate; None while runs are missing or if every rate diverged.
        under_tuned: the best rate is still at the edge and the grid may not grow further, or no
            rate trained at all. Such a cell is shown and never ranked.
    """

    trials: tuple[Trial, ...]
    selected: float | None
    under_tuned: bool

    @property
    def missing(self) -> bool:
        """Whether runs are missing."""
        return any(trial.missing for trial in self.trials)


def tuning_of(cell: Cell, budget: Budget, records: Records) -> Tuning:
    """Follow the search as far as the records go.

    The grid grows by one point beyond the edge that holds the best rate (downwards if every rate
    diverged) while points are left and the rate stays in the cell's range.
    """
    half = budget.grid_points // 2
    positions = [p for p in range(-half, half + 1) if _allowed(cell, p)]
    if not positions:
        raise ValueError(
            f"{cell.name}: no grid point around {cell.centre:g} is in [{cell.low:g}, {cell.high:g}]"
        )
    extensions = 0
    while True:
        trials = tuple(_trial(cell, budget, records, p, extension=abs(p) > half) for p in positions)
        if any(trial.missing for trial in trials):
            return Tuning(trials, None, under_tuned=False)
        best = min(trials, key=lambda trial: (trial.score, trial.rate))
        trained = best.score < math.inf
        if trained and best not in (trials[0], trials[-1]):
            return Tuning(trials, best.rate, under_tuned=False)
        upwards = trained and best is trials[-1] and len(trials) > 1
        beyond = positions[-1] + 1 if upwards else positions[0] - 1
        if extensions == budget.extensions or not _allowed(cell, beyond):
            return Tuning(trials, best.rate if trained else None, under_tuned=True)
        positions = sorted([*positions, beyond])
        extensions += 1


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
    """Return how many runs the cell takes if its grid grows no further."""
    tuning = tuning_of(cell, budget, records)
    if not tuning.missing:
        return len(_specs(cell, budget, tuning))
    return len(tuning.trials) * budget.tuning_seeds + budget.fresh_seeds


def _specs(cell: Cell, budget: Budget, tuning: Tuning) -> list[RunSpec]:
    specs = [cell.spec(trial.rate, seed) for trial in tuning.trials for seed in budget.tuning]
    if tuning.missing:
        return specs
    rates: list[float] = [] if tuning.selected is None else [tuning.selected]
    if budget.defaults and cell.default_rate not in rates:
        rates.append(cell.default_rate)
    return specs + [cell.spec(rate, seed) for rate in rates for seed in budget.fresh]


def _allowed(cell: Cell, position: int) -> bool:
    return cell.low <= cell.rate(position) <= cell.high


def _trial(
    cell: Cell, budget: Budget, records: Records, position: int, *, extension: bool
) -> Trial:
    rate = cell.rate(position)
    losses: dict[int, float] = {}
    missing: list[int] = []
    for seed in budget.tuning:
        record = records.get(cell.spec(rate, seed).key())
        if record is None:
            missing.append(seed)
        else:
            value = record.metrics.get(f"val_{cell.judged}") if record.status == "ok" else None
            losses[seed] = cell.cost(value)
    return Trial(rate, extension, losses, tuple(missing))
