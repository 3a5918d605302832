"""AdamW with one more hyperparameter searched, the search curve, and times, on hand-made logs."""

import dataclasses
import json
import math

import pytest
from optim_bench.errors import BenchError
from optim_bench.protocol import Budget, next_specs
from optim_bench.report.pages import summary_markdown
from optim_bench.results.store import Store
from optim_bench.results.verdicts import build_results, results_of, validate_results

BUDGET = Budget(grid_points=3, tuning_seeds=1, fresh_seeds=10, extensions=0, defaults=False)
RATES = (0.000316, 0.001, 0.00316)
FRESH = [1.0 + 0.01 * i for i in range(10)]


@pytest.fixture
def plan(make_plan):
    """STAM, and AdamW at three values of b1, on a real workload."""
    given = make_plan({"jax": ("stam", "adamw")}, BUDGET, target=0.5)
    stam, adamw = given.cells
    variants = [
        dataclasses.replace(
            adamw,
            label=f"adamw,b1={b1}",
            hyperparameters={**adamw.hyperparameters, "b1": b1},
        )
        for b1 in (0.5, 0.95)
    ]
    adamw = dataclasses.replace(adamw, hyperparameters={**adamw.hyperparameters, "b1": 0.9})
    titles = {"jax/adamw,b1=0.5": "AdamW (b1=0.5)", "jax/adamw,b1=0.95": "AdamW (b1=0.95)"}
    return dataclasses.replace(
        given,
        cells=(stam, *variants, adamw),
        titles={**given.titles, **titles},
        families={**given.families, **dict.fromkeys(titles, "baseline")},
    )


@pytest.fixture
def run(plan, make_record):
    """Build results from label -> (tuning losses of the three rates, fresh losses)."""

    def build(logs, times=None):
        records = {}
        for _ in range(2):
            for cell in plan.cells:
                for spec in next_specs(cell, BUDGET, records):
                    tuning, fresh = logs[cell.label]
                    rate = spec.hyperparameters["learning_rate"]
                    value = tuning[RATES.index(rate)] if spec.seed < 100 else fresh[spec.seed - 100]
                    if value != "missing":
                        records[spec.key()] = make_record(spec, value)
        results = build_results(plan, records, times)
        assert validate_results(json.loads(json.dumps(results, allow_nan=False))) == []
        return results

    return build


def logs(**changes):
    """AdamW at b1 0.5 is best on the tuning seeds; at 0.95 it is best on the fresh ones."""
    given = {
        "stam": ([2.0, 1.0, 3.0], [0.8 * x for x in FRESH]),
        "adamw,b1=0.5": ([2.0, 0.7, 3.0], [0.9 * x for x in FRESH]),
        "adamw,b1=0.95": ([2.0, 0.9, 3.0], [0.5 * x for x in FRESH]),
        "adamw": ([2.0, 1.1, 3.0], FRESH),
    }
    return {**given, **changes}


def test_the_variant_is_chosen_on_the_tuning_seeds_alone(run):
    (found,) = run(logs())["searches"]
    assert found["chosen"] == "adamw,b1=0.5"
    assert found["title"] == "ADAMW (b1 chosen on the tuning seeds)"
    assert found["labels"] == ["adamw,b1=0.5", "adamw,b1=0.95", "adamw"]
    assert found["mean_test_loss"] == pytest.approx(0.9 * sum(FRESH) / 10)


def test_its_larger_budget_is_stated(run):
    results = run(logs())
    (found,) = results["searches"]
    assert found["trials"] == 9
    assert found["tuning_steps"] == 9 * 40
    row = next(
        line
        for line in summary_markdown(results).splitlines()
        if line.startswith("| toy | adamw,b1=0.5")
    )
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[2:5] == ["9", "STAM", "3"]
    assert cells[-1] == "better, exploratory"


def test_the_comparison_is_with_the_chosen_variant_on_fresh_seeds(run):
    (found,) = run(logs())["searches"]
    stam, adamw = found["comparisons"]
    assert (stam["label"], adamw["label"]) == ("stam", "adamw")
    assert stam["ratio"] == pytest.approx(0.8 / 0.9)
    assert stam["verdict"] == "better"
    assert stam["p_adjusted"] == pytest.approx(2 / 2**10)
    assert "better than ADAMW (b1 chosen on the tuning seeds)" in stam["sentence"]
    assert adamw["verdict"] == "exploratory"
    assert adamw["ratio"] == pytest.approx(1 / 0.9)


def test_an_unfinished_variant_is_no_search(run):
    assert run(logs(**{"adamw,b1=0.95": ([2.0, "missing", 3.0], FRESH)}))["searches"] == []


def test_a_variant_at_the_edge_withholds_the_verdict_when_chosen(run):
    results = run(logs(**{"adamw,b1=0.5": ([2.0, 0.7, 0.1], FRESH)}))
    (stam, _) = results["searches"][0]["comparisons"]
    assert stam["verdict"] == "under-tuned"


@pytest.mark.parametrize(("due", "verdict"), [(True, "incomplete"), (False, "better")])
def test_a_win_over_the_chosen_variant_needs_its_default_rate_where_the_tier_runs_it(
    plan, make_record, due, verdict
):
    elsewhere = {**plan.cells[1].hyperparameters, "learning_rate": RATES[2]}
    chosen = dataclasses.replace(plan.cells[1], hyperparameters=elsewhere)
    cells = (plan.cells[0], chosen, *plan.cells[2:])
    budget = dataclasses.replace(BUDGET, defaults=due)
    given, records = logs(), {}
    for _ in range(2):
        for cell in cells:
            # Without the defaults: only the chosen variant's is another rate than its best.
            for spec in next_specs(cell, BUDGET, records):
                tuning, fresh = given[cell.label]
                rate = spec.hyperparameters["learning_rate"]
                value = tuning[RATES.index(rate)] if spec.seed < 100 else fresh[spec.seed - 100]
                records[spec.key()] = make_record(spec, value)
    results = build_results(dataclasses.replace(plan, cells=cells, budget=budget), records)
    (search,) = results["searches"]
    assert search["chosen"] == "adamw,b1=0.5"
    stam = next(c for c in search["comparisons"] if c["label"] == "stam")
    assert stam["verdict"] == verdict


def test_one_adamw_is_no_search(make_plan, make_record):
    plan = make_plan({"jax": ("stam", "adamw")}, BUDGET)
    assert build_results(plan, {})["searches"] == []


def test_the_search_curve_is_the_expected_best_of_k(run):
    results = run(logs())
    best = next(c for c in results["cells"] if c["label"] == "stam")["tuning"]["best_of"]
    # Scores are log losses, so means are geometric: of 2, 1 and 3; of the three pairs; the best.
    assert best["expected"] == pytest.approx([6 ** (1 / 3), 2 ** (1 / 3), 1.0])
    assert best["low"] == pytest.approx([1.0, 1.0, 1.0])
    assert best["high"] == pytest.approx([3.0, 2.0, 1.0])


def test_the_search_curve_starts_where_no_draw_diverged_throughout(run):
    results = run(logs(stam=([2.0, 1.0, None], FRESH)))
    best = next(c for c in results["cells"] if c["label"] == "stam")["tuning"]["best_of"]
    assert best["expected"][0] is None
    assert best["expected"][1:] == pytest.approx([math.exp(math.log(2) / 3), 1.0])


def times(**changes):
    row = {"median": 0.002, "low": 0.001, "high": 0.003, "first": 1.0}
    row |= {"ratio": 1.5, "ratio_low": 1.4, "ratio_high": 1.6}
    source = {"workload": "toy", "framework": "jax", "rows": {"stam": row, "adamw": row}}
    source |= {"band": [0.9, 1.1], "busy": False, "load": [0.0, 0.1], "rounds": 20}
    return {"schema_version": 1, "times": [{**source, "machine": {"cores": 1}}], **changes}


def test_time_to_target_is_steps_times_the_median_step(run):
    results = run(logs(stam=([2.0, 1.0, 3.0], [0.4] * 4 + [0.9] * 6)), times())
    stam = next(c for c in results["cells"] if c["label"] == "stam")
    assert stam["steps_to_target"]["runs"] == [10.0] * 4 + [None] * 6
    assert stam["seconds_to_target"]["runs"] == pytest.approx([0.02] * 4 + [None] * 6)
    # More than half missed: the median is beyond the horizon, not the mean of the hits.
    assert stam["seconds_to_target"]["median"] is None
    assert stam["step_time"]["ratio"] == 1.5
    assert results["times"][0]["band"] == [0.9, 1.1]


def test_without_times_nothing_is_invented(run):
    results = run(logs())
    assert results["times"] == []
    assert {c["step_time"] for c in results["cells"]} == {None}
    assert {c["seconds_to_target"] for c in results["cells"]} == {None}


def test_times_of_another_version_are_refused(run):
    with pytest.raises(BenchError, match="measure anew"):
        run(logs(), times(schema_version=2))


def test_a_folder_s_times_are_part_of_its_results(plan, tmp_path):
    store = Store(tmp_path)
    store.open()
    store.register(plan)
    assert results_of(store)["times"] == []
    (tmp_path / "times.json").write_text(json.dumps(times()))
    assert results_of(store)["times"][0]["rounds"] == 20
    (tmp_path / "times.json").write_text("{")
    with pytest.raises(BenchError, match=r"times\.json cannot be read .* measure anew"):
        results_of(store)
