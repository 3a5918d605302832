"""One optimizer on one workload, and the runs of it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optim_bench.records import Hyperparameter, RunSpec

Values = Mapping[str, Hyperparameter]
# What a plan does not write down.
_LEFT_OUT: Mapping[str, Any] = {
    "source": None,
    "task": None,
    "judged": "loss",
    "larger_is_better": False,
    "points": (),
}


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
        points: hyperparameters of a search over more than the rate, each with `"learning_rate"`;
            empty for the grid.
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
    points: tuple[Values, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "points", tuple(self.points))

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

    def position(self, rate: float) -> int:
        """Return the grid position nearest to a learning rate."""
        return round(2 * math.log10(rate / self.centre))

    def spec(self, rate: float, seed: int, values: Values | None = None) -> RunSpec:
        """Return the run of this cell at a learning rate, a seed and other searched values."""
        return RunSpec(
            workload=self.workload,
            workload_version=self.workload_version,
            framework=self.framework,
            optimizer=self.optimizer,
            hyperparameters={**self.hyperparameters, **(values or {}), "learning_rate": rate},
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
        kept = {k: value for k, value in values.items() if _LEFT_OUT.get(k, k) != value}
        return kept | ({"points": [dict(point) for point in self.points]} if self.points else {})

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
