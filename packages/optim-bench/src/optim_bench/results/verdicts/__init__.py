"""From a store to `results.json`: measured cells, paired comparisons, aggregates, verdicts."""

from optim_bench.results.verdicts._build import build_results, results_of
from optim_bench.results.verdicts._cells import (
    SMALLEST_CURVE,
    fresh_losses,
    judged_mean,
    measure_cell,
    other_metrics,
)
from optim_bench.results.verdicts._compare import compare_cells, compare_pairs
from optim_bench.results.verdicts._schema import SCHEMA_VERSION, schema, validate_results
from optim_bench.results.verdicts._words import (
    FRAMEWORK_TITLES,
    INTERVAL_NOTE,
    LABELS,
    change_in_words,
    chosen_text,
    detectable_in_words,
    has_interval,
    interval_text,
    judged_in_words,
    ratio_columns,
    ratio_text,
    searched_in_words,
    shown_interval,
    verdict_interval,
    verdict_sentence,
)

__all__ = [
    "FRAMEWORK_TITLES",
    "INTERVAL_NOTE",
    "LABELS",
    "SCHEMA_VERSION",
    "SMALLEST_CURVE",
    "build_results",
    "change_in_words",
    "chosen_text",
    "compare_cells",
    "compare_pairs",
    "detectable_in_words",
    "fresh_losses",
    "has_interval",
    "interval_text",
    "judged_in_words",
    "judged_mean",
    "measure_cell",
    "other_metrics",
    "ratio_columns",
    "ratio_text",
    "results_of",
    "schema",
    "searched_in_words",
    "shown_interval",
    "validate_results",
    "verdict_interval",
    "verdict_sentence",
]
