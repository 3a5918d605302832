"""Statistics of paired comparisons: framework-free, seeded, tested on logs with known answers."""

from optim_bench.results.stats._aggregate import (
    Interval,
    bootstrap_aggregates,
    interquartile_mean,
    probability_of_improvement,
)
from optim_bench.results.stats._holm import holm, reachable
from optim_bench.results.stats._paired import (
    MAX_EXACT_PAIRS,
    PairedComparison,
    compare_paired,
    log_ratio,
    sign_flip_p_value,
    smallest_detectable,
    smallest_p_value,
)
from optim_bench.results.stats._profile import performance_profile, profile_area, steps_to_target
from optim_bench.results.stats._search import BestOf, best_of

__all__ = [
    "MAX_EXACT_PAIRS",
    "BestOf",
    "Interval",
    "PairedComparison",
    "best_of",
    "bootstrap_aggregates",
    "compare_paired",
    "holm",
    "interquartile_mean",
    "log_ratio",
    "performance_profile",
    "probability_of_improvement",
    "profile_area",
    "reachable",
    "sign_flip_p_value",
    "smallest_detectable",
    "smallest_p_value",
    "steps_to_target",
]
