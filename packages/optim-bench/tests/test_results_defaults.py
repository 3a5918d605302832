"""A win over a tuned AdamW counts only if it holds against AdamW at its default rate, too."""

import dataclasses
import json
import math

import pytest
from optim_bench.protocol import Budget, next_specs
from optim_bench.report.pages import summary_markdown
from optim_bench.results.verdicts import build_results, validate_results

BUDGET = Budget(grid_points=5, tuning_seeds=1, fresh_seeds=10, extensions=0, defaults=True)
FRESH = [1.0 + 0.01 * i for i in range(10)]
DEFAULT, SELECTED = 0.001, 0.00316


@pytest.fixture
def compare(make_plan, make_record):
    """Compare STAM, at 0.8 of what the seeds give, with AdamW at given factors of it.

    `last` is what the last seed of AdamW's default rate did, where not the same as the others.
    """

    def run(tuned, default, *, budget=BUDGET, last=None):
        plan = make_plan({"jax": ("stam", "adamw")}, budget)
        records = {}
        for _ in range(2):
            for cell in plan.cells:
                for spec in next_specs(cell, budget, records):
                    rate = spec.hyperparameters["learning_rate"]
                    if spec.seed < 100:
                        loss = 1.0 if rate == SELECTED else 2.0
                    elif cell.label == "stam":
                        loss = 0.8 * FRESH[spec.seed - 100]
                    else:
                        factor = default if rate == DEFAULT else tuned
                        loss = None if factor is None else factor * FRESH[spec.seed - 100]
                        if rate == DEFAULT and spec.seed == 109 and last is not None:
                            if last == "failed":
                                records[spec.key()] = make_record(
                                    spec, None, status="failed", error="the node died"
                                )
                                continue
                            if last == "missing":
                                continue
                            loss = None
                    records[spec.key()] = make_record(spec, loss)
        results = build_results(plan, records)
        assert validate_results(json.loads(json.dumps(results, allow_nan=False))) == []
        return results

    return run


def test_a_win_over_both_is_better(compare):
    results = compare(1.0, 0.9)
    (found,) = results["comparisons"]
    assert found["verdict"] == "better"
    assert found["ratio"] == pytest.approx(0.8)
    assert found["against_default"]["ratio"] == pytest.approx(0.8 / 0.9)
    assert found["against_default"]["p_adjusted"] == pytest.approx(2 / 2**10)


def test_a_win_over_a_misled_search_alone_is_not_confirmed(compare):
    results = compare(1.0, 0.7)
    (found,) = results["comparisons"]
    assert found["verdict"] == "not confirmed"
    assert found["p_adjusted"] == pytest.approx(2 / 2**10)
    assert found["reason"] == (
        "ADAMW at its default learning rate is better (ratio 1.14, p = 0.002)"
    )
    assert "no verdict, ADAMW at its default learning rate is better" in found["sentence"]
    assert results["headline"] == ["STAM against equally tuned ADAMW in JAX: not confirmed on toy."]
    (caution,) = [c for c in results["cautions"] if "default learning rate" in c]
    assert caution.endswith("so no improvement: toy/jax/stam.")


def test_a_tie_with_the_default_is_not_confirmed_either(compare):
    (found,) = compare(1.0, 0.8)["comparisons"]
    assert found["verdict"] == "not confirmed"
    assert "is not detectably worse (ratio 1.00, p = 1)" in found["reason"]


def test_a_loss_needs_no_confirmation(compare):
    assert compare(0.5, 2.0)["comparisons"][0]["verdict"] == "worse"


def test_a_default_that_diverged_confirms_nothing_and_withholds_nothing(compare):
    (found,) = compare(1.0, None)["comparisons"]
    assert found["against_default"] is None
    assert found["verdict"] == "better"


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        ("failed", "ADAMW: 1 runs at its default rate failed"),
        ("missing", "ADAMW: 1 runs at its default rate have not run"),
    ],
)
@pytest.mark.parametrize("tuned", [1.0, 0.5])
def test_a_default_that_is_not_whole_leaves_the_comparison_incomplete(compare, tuned, last, reason):
    results = compare(tuned, 0.7, last=last)
    (found,) = results["comparisons"]
    assert (found["verdict"], found["reason"]) == ("incomplete", reason)
    assert found["against_default"] is None
    assert results["headline"] == ["STAM against equally tuned ADAMW in JAX: incomplete on toy."]
    assert results["aggregates"] == []


def test_a_default_that_diverged_once_confirms_nothing_and_withholds_nothing(compare):
    (found,) = compare(1.0, 0.7, last="diverged")["comparisons"]
    assert found["against_default"] is None
    assert found["verdict"] == "better"


def test_a_tier_without_defaults_cannot_ask(compare):
    budget = dataclasses.replace(BUDGET, defaults=False)
    (found,) = compare(1.0, 0.7, budget=budget)["comparisons"]
    assert found["against_default"] is None
    assert found["verdict"] == "better"


def test_the_summary_shows_the_loss_at_the_default_rate(compare):
    lines = summary_markdown(compare(1.0, 0.7)).splitlines()
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in lines if "| toy" in line]
    column = [c.strip() for c in next(x for x in lines if "| verdict" in x).strip("|").split("|")]
    expected = {"STAM": 0.8, "ADAMW": 0.7}
    shown = {row[1]: row[column.index("loss at the default rate")] for row in rows}
    middle = math.exp(sum(map(math.log, FRESH)) / 10)
    assert shown == {name: f"{x * middle:.4g}" for name, x in expected.items()}
