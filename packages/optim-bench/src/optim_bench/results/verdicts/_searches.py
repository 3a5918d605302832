"""AdamW with one more hyperparameter searched: chosen on the tuning seeds among its variants.

Where a plan holds variants of the baseline, such as `adamw,b1=0.5`, a user who tunes AdamW would
take the best of them. The choice is by the score that chooses a learning rate, the mean log
validation loss of the tuning seeds, so the fresh seeds stay fresh. The chosen AdamW had the budgets
of all its variants together; everything it is compared with had one. The comparisons are not in the
plan's family: their Holm correction is over this table, and they are exploratory.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from optim_bench.protocol import BASELINE, Plan
from optim_bench.results.verdicts._compare import compare_pairs

Measured = Mapping[str, Any]


def search_rows(plan: Plan, cells: Sequence[Measured], framework: str) -> list[dict[str, Any]]:
    """Return one row per workload on which the framework has variants of the baseline.

    Args:
        plan: says which cells are ours.
        cells: as `measure_cell` returns them, of all frameworks.
        framework: the one to look at.
    """
    chosen = dict(_chosen(cells, framework))
    mine = [c for c in cells if c["framework"] == framework and c["workload"] in chosen]
    # Everything but AdamW itself; the plain AdamW takes part as what the search started from.
    others = [c for c in mine if c["optimizer"] != BASELINE or c["label"] == BASELINE]
    real = {name for name, facts in plan.workloads.items() if facts["kind"] == "real"}
    compared = compare_pairs(
        [(c, chosen[c["workload"]]["cell"]) for c in others],
        [c["family"] == "ours" and c["workload"] in real for c in others],
        defaults_due=plan.budget.defaults,
    )
    return [
        {
            "framework": framework,
            "workload": workload,
            "optimizer": BASELINE,
            "searched": row["searched"],
            "title": row["cell"]["title"],
            "labels": row["labels"],
            "chosen": row["cell"]["label"],
            "learning_rate": row["cell"]["tuning"]["selected"],
            "trials": row["trials"],
            "tuning_steps": row["steps"],
            "mean_test_loss": row["cell"]["fresh"]["mean"].get("test_loss"),
            "comparisons": [c for c in compared if c["workload"] == workload],
        }
        for workload, row in chosen.items()
    ]


def _chosen(cells: Sequence[Measured], framework: str) -> Iterator[tuple[str, dict[str, Any]]]:
    mine = [c for c in cells if c["framework"] == framework and c["optimizer"] == BASELINE]
    for workload in dict.fromkeys(cell["workload"] for cell in mine):
        variants = [cell for cell in mine if cell["workload"] == workload]
        scores = [_score(cell) for cell in variants]
        if len(variants) < 2 or None in scores:
            continue
        best = min(range(len(variants)), key=lambda i: scores[i] or 0.0)
        names = _differing(variants)
        title = f"{_name(variants)} ({', '.join(names)} chosen on the tuning seeds)"
        yield (
            workload,
            {
                "cell": {**variants[best], "title": title},
                "searched": names,
                "labels": [cell["label"] for cell in variants],
                "trials": sum(len(cell["tuning"]["trials"]) for cell in variants),
                "steps": sum(cell["tuning"]["steps"] for cell in variants),
            },
        )


def _score(cell: Measured) -> float | None:
    """Return the score of the selected learning rate, inf if none trained, None if unfinished."""
    tuning = cell["tuning"]
    if not tuning["complete"] or tuning["failed"]:
        return None
    # A point that was stopped has a score over fewer seeds, and could not be chosen.
    scores = [_trial_score(trial) for trial in tuning["trials"] if "stopped" not in trial]
    return min((score for score in scores if score is not None), default=math.inf)


def _trial_score(trial: Measured) -> float | None:
    """Return the score that the search saw; JSON has no number for that of a loss of 0."""
    if None not in trial["val_loss"] and 0 in trial["val_loss"]:
        return -math.inf
    return trial["mean_log_val_loss"]


def _differing(variants: Sequence[Measured]) -> list[str]:
    names = sorted({name for cell in variants for name in cell["hyperparameters"]})
    return [n for n in names if len({cell["hyperparameters"].get(n) for cell in variants}) > 1]


def _name(variants: Sequence[Measured]) -> str:
    return next(
        (cell["title"] for cell in variants if cell["label"] == BASELINE), variants[0]["title"]
    )
