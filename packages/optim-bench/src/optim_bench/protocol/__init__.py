"""Protocol v1: which runs a comparison needs, and which of them may be reported."""

from optim_bench.protocol._cell import Cell, Values
from optim_bench.protocol._plan import BASELINE, PROTOCOL, Plan, added_of, baseline_name, family_of
from optim_bench.protocol._search import (
    Phase,
    Trial,
    Tuning,
    expected_runs,
    known_specs,
    next_specs,
    phase_of,
    tuning_of,
)
from optim_bench.protocol._tiers import (
    ALPHA,
    BUDGET_TIER,
    LEVEL,
    MAX_FAMILY,
    NEIGHBOURHOOD,
    TIERS,
    Budget,
)

__all__ = [
    "ALPHA",
    "BASELINE",
    "BUDGET_TIER",
    "LEVEL",
    "MAX_FAMILY",
    "NEIGHBOURHOOD",
    "PROTOCOL",
    "TIERS",
    "Budget",
    "Cell",
    "Phase",
    "Plan",
    "Trial",
    "Tuning",
    "Values",
    "added_of",
    "baseline_name",
    "expected_runs",
    "family_of",
    "known_specs",
    "next_specs",
    "phase_of",
    "tuning_of",
]
