"""Budgets: the same number of trials for every optimizer, by tier."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from optim_bench.results.stats import MAX_EXACT_PAIRS

# Level of the family of tests per framework, and of every interval.
ALPHA = 0.05
LEVEL = 0.95
# With ten seeds the sign-flip test reaches 2 / 2^10; Holm's first step allows 0.05 / 25.
MAX_FAMILY = 25
# Tuning seeds count from 0, fresh seeds from here: no seed is ever both.
FIRST_FRESH_SEED = 100
# A best point and one on either side, without which it could not be called the best.
NEIGHBOURHOOD = 3


@dataclass(frozen=True)
class Budget:
    """How many runs each optimizer gets on each workload.

    Args:
        grid_points: learning rates tried, half a decade apart, centred on the optimizer's declared
            centre; odd.
        tuning_seeds: seeds per learning rate; selection only.
        fresh_seeds: seeds of the reported test results, at most 20.
        extensions: further points allowed, one at a time, while the best is at the grid's edge.
        defaults: whether the authors' default hyperparameters run on the fresh seeds as well.
        halving: whether the search starts at the centre and its two neighbours with the first
            tuning seed, and takes the better half of its points alone to each further seed.
        search: hyperparameters that are searched beside the learning rate.

    Raises:
        ValueError: a count is out of range.

    Example:
        >>> TIERS["standard"].fresh, TIERS["smoke"].tuning
        ((100, 101, 102, 103, 104, 105, 106, 107, 108, 109), (0,))
    """

    grid_points: int
    tuning_seeds: int
    fresh_seeds: int
    extensions: int
    defaults: bool
    halving: bool = False
    search: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "search", tuple(self.search))
        if self.grid_points < 1 or self.grid_points % 2 == 0:
            raise ValueError(f"grid_points is {self.grid_points}; a centred grid has an odd number")
        if not 1 <= self.tuning_seeds <= FIRST_FRESH_SEED:
            raise ValueError(f"tuning_seeds is {self.tuning_seeds}; use 1 to {FIRST_FRESH_SEED}")
        if not 1 <= self.fresh_seeds <= MAX_EXACT_PAIRS:
            raise ValueError(
                f"seeds is {self.fresh_seeds}; use 1 to {MAX_EXACT_PAIRS} (the test over all sign "
                "flips is exact, and has 2^seeds cases)"
            )
        if self.extensions < 0:
            raise ValueError(f"extensions is {self.extensions}; use 0 or more")

    @property
    def tuning(self) -> tuple[int, ...]:
        """Seeds that choose the learning rate."""
        return tuple(range(self.tuning_seeds))

    @property
    def fresh(self) -> tuple[int, ...]:
        """Seeds that are reported."""
        return tuple(range(FIRST_FRESH_SEED, FIRST_FRESH_SEED + self.fresh_seeds))

    @property
    def points(self) -> int:
        """Points of a search over several hyperparameters, 0 for one over the rate alone.

        A power of two, as a Sobol sequence has to be to fill its box evenly, and the defaults.
        """
        count = self.grid_points * (1 + len(self.search))
        return 1 + (1 << (count - 1).bit_length()) if self.search else 0

    @property
    def rungs(self) -> tuple[int, ...]:
        """How many tuning seeds the points have that are compared, step by step."""
        return tuple(range(1, self.tuning_seeds + 1)) if self.halving else (self.tuning_seeds,)

    def kept(self, points: int) -> int:
        """Return how many of so many points go on to the next tuning seed.

        The better half, but always as many as the best and its neighbours are.

        Example:
            >>> [TIERS["standard"].kept(points) for points in (3, 5, 7, 17)]
            [3, 3, 4, 9]
        """
        return min(points, max(NEIGHBOURHOOD, -(-points // 2)))

    def to_json(self) -> dict[str, Any]:
        """Return the budget as a plain dictionary, without what earlier plans did not have."""
        values = {**vars(self), "search": list(self.search)}
        return {k: v for k, v in values.items() if v or k not in ("halving", "search")}


# Of a plan whose runs were chosen for the time that there is.
BUDGET_TIER = "budget"
TIERS: Mapping[str, Budget] = MappingProxyType(
    {
        "smoke": Budget(3, 1, 2, 4, defaults=False),
        "quick": Budget(5, 2, 8, 4, defaults=False, halving=True),
        "standard": Budget(7, 3, 10, 4, defaults=True, halving=True),
        "full": Budget(9, 3, 20, 6, defaults=True, halving=True),
    }
)
