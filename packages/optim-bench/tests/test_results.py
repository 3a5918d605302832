"""Verdicts on hand-made logs with known answers: the scoring engine is held to these."""

import dataclasses
import json

import numpy as np
import pytest
from optim_bench.protocol import Budget, next_specs
from optim_bench.results.verdicts import build_results, validate_results, verdict_sentence

SEEDS = 10
BUDGET = Budget(grid_points=3, tuning_seeds=1, fresh_seeds=SEEDS, extensions=0, defaults=False)
JAX_PAIR = {"jax": ("stam", "adamw")}


def comparison(results, label="stam", workload="toy"):
    return next(
        c for c in results["comparisons"] if (c["label"], c["workload"]) == (label, workload)
    )


def noise(seed, size=SEEDS, scale=0.02):
    return np.exp(np.random.default_rng(seed).normal(scale=scale, size=size))


def test_a_clear_improvement_is_better(score):
    found = comparison(score({"stam": list(0.8 * noise(1)), "adamw": list(noise(2))}))
    assert found["verdict"] == "better"
    assert found["low"] < 0.8 < found["high"]
    assert found["p_value"] == pytest.approx(2 / 2**SEEDS)
    assert found["sentence"].startswith("STAM on toy: better than ADAMW, test loss ")
    assert "10 paired seeds; p = 0.002 after Holm over 1 tests" in found["sentence"]


def test_a_clear_loss_is_worse(score):
    results = score({"stam": list(1.3 * noise(1)), "adamw": list(noise(2))})
    assert comparison(results)["verdict"] == "worse"
    assert results["headline"] == ["STAM against equally tuned ADAMW in JAX: worse on toy."]


def test_a_tie_is_no_detectable_difference(score):
    losses = list(noise(1))
    found = comparison(score({"stam": losses, "adamw": losses}))
    assert found["verdict"] == "no difference"
    assert (found["ratio"], found["p_value"], found["detectable_ratio"]) == (1.0, 1.0, 1.0)


def test_noise_is_no_detectable_difference_and_says_what_would_have_been_found(score):
    found = comparison(
        score({"stam": list(noise(1, scale=0.2)), "adamw": list(noise(2, scale=0.2))})
    )
    assert found["verdict"] == "no difference"
    # Differences of two logs with deviation 0.2 and ten pairs: 0.28 x 0.996 in theory.
    assert 1.1 < found["detectable_ratio"] < 1.6
    assert "would have found a change of about" in found["sentence"]


def test_five_seeds_are_said_to_be_too_few_whatever_they_show(score):
    budget = Budget(3, 1, 5, 0, defaults=False)
    results = score({"stam": [0.1] * 5, "adamw": [1.0] * 5}, budget=budget)
    found = comparison(results)
    assert found["verdict"] == "too few seeds"
    assert "with 5 seeds no p-value can be below 0.062" in found["sentence"]
    assert any("use --seeds" in caution for caution in results["cautions"])


def test_holm_makes_the_same_difference_harder_in_a_larger_family(score):
    # p = 2 * 3 / 2^6 of the single test: found alone, lost among three.
    budget = Budget(3, 1, 7, 0, defaults=False)
    stam = [0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 1.01]
    alone = comparison(score({"stam": stam, "adamw": [1.0] * 7}, budget=budget))
    among = comparison(
        score(
            {"stam": stam, "stac": [1.0] * 7, "stam_lite": [1.0] * 7, "adamw": [1.0] * 7},
            budget=budget,
        )
    )
    assert alone["p_value"] == among["p_value"] == pytest.approx(4 / 2**7)
    assert alone["verdict"] == "better"
    assert among["verdict"] == "no difference"
    assert among["p_adjusted"] == pytest.approx(3 * 4 / 2**7)


def test_divergence_of_a_fresh_run_withholds_the_verdict(score):
    results = score({"stam": [None, *[0.5] * 9], "adamw": [1.0] * SEEDS})
    found = comparison(results)
    assert found["verdict"] == "unstable"
    assert found["ratio"] is None
    assert found["sentence"] == "STAM on toy: no verdict; STAM diverged on 1 of 10 fresh seeds."
    assert [failure["status"] for failure in results["failures"]] == ["diverged"]


def test_divergence_of_the_baseline_is_no_win(score):
    found = comparison(score({"stam": [0.5] * SEEDS, "adamw": [None, *[1.0] * 9]}))
    assert found["verdict"] == "unstable"
    assert found["reason"] == "ADAMW diverged on 1 of 10 fresh seeds"


def test_a_failed_run_makes_the_comparison_incomplete(score):
    results = score({"stam": ["failed", *[0.5] * 9], "adamw": [1.0] * SEEDS})
    assert comparison(results)["verdict"] == "incomplete"
    assert comparison(results)["reason"] == "STAM: 1 runs failed"
    assert results["aggregates"] == []


def test_a_missing_seed_makes_the_comparison_incomplete(score):
    found = comparison(score({"stam": ["missing", *[0.5] * 9], "adamw": [1.0] * SEEDS}))
    assert found["verdict"] == "incomplete"
    assert found["reason"] == "STAM: 1 runs have not run"
    assert found["pairs"] == 9


@pytest.mark.parametrize("side", ["stam", "adamw"])
def test_an_under_tuned_side_is_never_ranked(score, side):
    results = score({"stam": [0.5] * SEEDS, "adamw": [1.0] * SEEDS}, edge=(side,))
    found = comparison(results)
    assert found["verdict"] == "under-tuned"
    assert f"{side.upper()}'s best learning rate is at the edge of its grid" in found["sentence"]
    assert results["aggregates"] == []
    assert any(f"not ranked: toy/jax/{side}" in caution for caution in results["cautions"])


def test_synthetic_workloads_are_exploratory_and_in_no_aggregate(score):
    results = score({"stam": [0.5] * SEEDS, "adamw": [1.0] * SEEDS}, kind="synthetic")
    assert comparison(results)["verdict"] == "exploratory"
    assert comparison(results)["p_adjusted"] is None
    assert results["aggregates"] == []
    assert any("Synthetic" in caution for caution in results["cautions"])
    assert results["headline"] == []


def test_frameworks_are_compared_within_themselves_only(score):
    results = score(
        {"stam": [0.5] * SEEDS, "stac": [0.9] * SEEDS, "adamw": [1.0] * SEEDS},
        frameworks={"jax": ("stam", "adamw"), "torch": ("stac", "adamw")},
    )
    assert {(c["framework"], c["label"]) for c in results["comparisons"]} == {
        ("jax", "stam"),
        ("torch", "stac"),
    }
    assert all(c["tests"] == 1 for c in results["comparisons"])


def test_the_aggregate_is_the_interquartile_mean_over_workloads(score):
    results = score(
        {"stam": [0.5] * SEEDS, "adamw": [1.0] * SEEDS}, workloads=("toy", "other", "third")
    )
    (aggregate,) = results["aggregates"]
    assert aggregate["interquartile_ratio"]["value"] == pytest.approx(0.5)
    assert aggregate["probability_of_improvement"]["value"] == 1.0
    assert aggregate["workloads"] == ["other", "third", "toy"]


def test_one_workload_still_has_an_aggregate_conditional_on_it(score):
    (aggregate,) = score({"stam": [0.9] * SEEDS, "adamw": [1.0] * SEEDS})["aggregates"]
    assert aggregate["workloads"] == ["toy"]


def test_steps_to_target_censor_misses(score):
    results = score({"stam": [0.5] * 5 + [0.9] * 5, "adamw": [0.9] * SEEDS}, target=0.6)
    by_label = {cell["label"]: cell["steps_to_target"] for cell in results["cells"]}
    assert by_label["stam"]["reached"] == 5
    assert by_label["stam"]["runs"] == [10.0] * 5 + [None] * 5
    assert by_label["adamw"]["median"] is None
    (profile,) = results["profiles"]
    assert profile["shares"]["stam"][0] == 0.5
    assert profile["shares"]["adamw"][-1] == 0.0


@pytest.mark.parametrize(
    ("last", "edge"), [(0.9, ("stac",)), ("failed", ()), ("missing", ()), (None, ("stac",))]
)
def test_who_is_under_tuned_or_incomplete_takes_no_part_in_the_profile(score, last, edge):
    losses = {"stam": [0.5] * SEEDS, "stac": [0.5] * 9 + [last], "adamw": [0.9] * SEEDS}
    (profile,) = score(losses, edge=edge, target=0.6)["profiles"]
    assert set(profile["shares"]) == set(profile["areas"]) == {"stam", "adamw"}
    assert set(profile["pairwise"]) == {"stam"}
    assert score(losses, edge=("adamw",), target=0.6)["profiles"] == []


def test_a_run_that_diverged_is_a_miss_in_the_profile(score):
    losses = {"stam": [0.5] * 9 + [None], "adamw": [0.5] * SEEDS}
    (profile,) = score(losses, target=0.6)["profiles"]
    assert profile["shares"]["stam"][-1] == 0.9


def test_curves_show_quartiles_and_drop_what_is_infinite(score):
    results = score({"stam": [None] * 3 + [1.0] * 7, "adamw": [1.0] * SEEDS})
    stam = next(cell for cell in results["cells"] if cell["label"] == "stam")
    assert stam["curve"]["median"] == [1.0, 1.0]
    assert stam["curve"]["high"] == [None, None]


def test_results_do_not_depend_on_the_order_of_the_records(make_plan, make_record):
    plan = make_plan(JAX_PAIR, BUDGET)
    records = {}
    for _ in range(2):
        for cell in plan.cells:
            for spec in next_specs(cell, BUDGET, records):
                records[spec.key()] = make_record(spec, 1.0 + spec.seed % 7)
    backwards = dict(reversed(records.items()))
    assert build_results(plan, records) == build_results(plan, backwards)


def test_runs_outside_the_plan_are_left_out(make_plan, make_record, make_spec):
    plan = make_plan(JAX_PAIR, BUDGET)
    stranger = make_spec(seed=100, optimizer="stac")
    results = build_results(plan, {stranger.key(): make_record(stranger, 0.1)})
    assert results["runs"] == 0


def test_an_empty_store_has_results_too(make_plan):
    results = build_results(make_plan(JAX_PAIR, BUDGET), {})
    assert validate_results(results) == []
    assert comparison(results)["verdict"] == "incomplete"


def test_different_environments_are_pointed_out(make_plan, make_record):
    plan = make_plan(JAX_PAIR, BUDGET)
    records = {}
    for index, spec in enumerate(next_specs(plan.cells[0], BUDGET, {})):
        records[spec.key()] = make_record(spec, 1.0, environment={"jax": f"0.{index}"})
    cautions = build_results(plan, records)["cautions"]
    assert "Runs come from different environments (jax)." in cautions


def test_a_over_a_is_called_different_no_more_often_than_the_level_allows(score):
    called = 0
    for trial in range(25):
        a, b = noise(2 * trial), noise(2 * trial + 1)
        called += (
            comparison(score({"stam": list(a), "adamw": list(b)}))["verdict"] != "no difference"
        )
    assert called <= 5  # of 25 at 5 %, more than 5 have a chance of 0.1 %


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "schema_version is 2; this version of optim-bench reads 1"),
        ({"runs": -1}, "at runs: -1 is less than the minimum of 0"),
        ({"surprise": 1}, "'surprise' was unexpected"),
        ({"cautions": []}, "at cautions"),
    ],
)
def test_the_schema_refuses_what_is_not_results(score, change, message):
    results = score({"stam": [0.5] * SEEDS, "adamw": [1.0] * SEEDS})
    assert message in validate_results({**results, **change})[0]


def test_the_schema_refuses_a_verdict_without_its_interval(score):
    results = score({"stam": [0.5] * SEEDS, "adamw": [1.0] * SEEDS})
    results["comparisons"][0]["low"] = None
    assert validate_results(results) == ["at comparisons.0.low: None is not of type 'number'"]


@pytest.mark.parametrize("loss", [1e10, 1e60, 1e300])
@pytest.mark.parametrize("seeds", [2, 8])
def test_an_exploded_but_finite_run_still_gives_a_report(score, loss, seeds):
    budget = Budget(3, 1, seeds, 0, defaults=True)
    losses = [loss, *[1.0] * (seeds - 1)]
    found = comparison(score({"stam": losses, "adamw": [1.0] * seeds}, budget=budget))
    assert found["verdict"] == ("too few seeds" if seeds == 2 else "no difference")
    assert found["ratio"] == pytest.approx(loss ** (1 / seeds))
    assert found["sentence"].endswith(".")
    assert (found["high"] is None) == ("no bound" in found["sentence"])


@pytest.mark.parametrize(
    ("factor", "ranked", "unranked"),
    [
        (4.4, "worse than ADAMW, test loss 4.4 times as high (", "4.4 times as high as ADAMW's ("),
        (1.03, "worse than ADAMW, test loss 3.0 % higher (", "3.0 % higher than ADAMW's ("),
        (0.9, "better than ADAMW, test loss 10.0 % lower (", "10.0 % lower than ADAMW's ("),
        (
            1.0001,
            "worse than ADAMW, test loss less than 0.05 % higher (",
            "less than 0.05 % higher than ADAMW's (",
        ),
        (1.0, "no detectable difference from ADAMW, test loss equal (", "equal to ADAMW's ("),
    ],
)
def test_every_change_reads_as_english(score, factor, ranked, unranked):
    losses = {"stam": [factor] * SEEDS, "adamw": [1.0] * SEEDS}
    assert f": {ranked}" in comparison(score(losses))["sentence"]
    found = comparison(score(losses, kind="synthetic"))
    assert f"; test loss {unranked}" in found["sentence"]


def test_a_title_that_ends_in_a_bracket_is_no_genitive():
    sentence = verdict_sentence(
        {"title": "STAM", "workload": "toy", "verdict": "exploratory", "reason": "exploratory"}
        | {"ratio": 0.9, "low": 0.8, "high": 1.1, "pairs": 10},
        "AdamW (b1=0.5)",
    )
    assert "test loss 10.0 % lower than that of AdamW (b1=0.5) (95 % interval" in sentence


def test_bounds_beyond_a_float_are_none(score):
    budget = Budget(3, 1, 2, 0, defaults=False)
    found = comparison(score({"stam": [1e60, 1.0], "adamw": [1.0, 1.0]}, budget=budget))
    assert (found["low"], found["high"], found["detectable_ratio"]) == (None, None, None)
    assert "95 % interval no bound to no bound" in found["sentence"]


@pytest.mark.parametrize(
    ("mine", "theirs", "verdict"), [(1e-300, 1e300, "better"), (1e300, 1e-300, "worse")]
)
def test_a_ratio_beyond_a_float_has_a_verdict_and_says_why_it_has_no_number(
    score, mine, theirs, verdict
):
    found = comparison(score({"stam": [mine] * SEEDS, "adamw": [theirs] * SEEDS}))
    assert (found["verdict"], found["ratio"]) == (verdict, None)
    assert found["reason"] == "a ratio is beyond the range of a float"
    assert f"{verdict} than ADAMW, though a ratio is beyond" in found["sentence"]
    assert all(abs(value) > 1381 for value in found["log_ratios"])


@pytest.mark.parametrize(
    ("zeros", "verdict"), [(SEEDS, "better"), (SEEDS - 1, "better"), (1, "no difference")]
)
def test_losses_of_exactly_zero_have_a_verdict_with_a_reason(score, zeros, verdict):
    losses = [0.0] * zeros + [1.0] * (SEEDS - zeros)
    results = score({"stam": losses, "adamw": [1.0] * SEEDS})
    found = comparison(results)
    assert (found["verdict"], found["ratio"], found["low"]) == (verdict, None, None)
    assert found["reason"] == "a loss of exactly 0 has no ratio"
    assert "though a loss of exactly 0 has no ratio (10 paired seeds" in found["sentence"]


def test_zero_against_the_default_rate_too_confirms(score):
    budget = Budget(3, 1, SEEDS, 0, defaults=True)
    results = score({"stam": [0.0] * SEEDS, "adamw": [1.0] * SEEDS}, budget=budget)
    assert comparison(results)["verdict"] == "better"


def test_the_largest_losses_have_a_mean(score):
    largest = 1.7e308
    results = score({"stam": [largest] * SEEDS, "adamw": [1.0] * SEEDS})
    mine = next(cell for cell in results["cells"] if cell["label"] == "stam")
    assert mine["fresh"]["mean"]["test_loss"] == pytest.approx(largest)


@pytest.mark.parametrize("losses", [(0.0, None), (0.0, 0.0), (5e-324, 1.7e308), (0.0, 1.7e308)])
def test_searches_over_zeros_and_divergence_have_a_curve(make_plan, make_record, losses):
    plan = make_plan(JAX_PAIR, BUDGET)
    records = {}
    for cell in plan.cells:
        while specs := next_specs(cell, plan.budget, records):
            for spec in specs:
                above = spec.hyperparameters["learning_rate"] >= cell.centre
                records[spec.key()] = make_record(spec, losses[above])
    results = build_results(plan, records)
    assert validate_results(json.loads(json.dumps(results, allow_nan=False))) == []
    for cell in results["cells"]:
        expected = cell["tuning"]["best_of"]["expected"]
        assert len(expected) == len(cell["tuning"]["trials"])
        assert (expected[0] is None) == (None in losses)
    assert all(c["reason"] or c["verdict"] == "no difference" for c in results["comparisons"])


def test_the_interval_of_a_verdict_is_at_the_level_that_holm_leaves_it(score):
    base = [1.0 + 0.01 * i for i in range(10)]
    strong = [0.8 * b * (1 + 0.001 * (i % 3)) for i, b in enumerate(base)]
    weak = [b * (0.97 if i % 3 else 1.02) for i, b in enumerate(base)]
    budget = dataclasses.replace(BUDGET, fresh_seeds=10)
    found = score({"stam": strong, "stam_lite": weak, "adamw": base}, budget=budget)
    first, second = found["comparisons"]
    assert (first["adjusted"]["level"], second["adjusted"]["level"]) == (0.975, 0.95)
    assert first["adjusted"]["low"] < first["low"] < first["high"] < first["adjusted"]["high"]
    assert (second["adjusted"]["low"], second["adjusted"]["high"]) == (
        second["low"],
        second["high"],
    )


def test_equal_p_values_have_intervals_of_one_level(score):
    base = [1.0 + 0.01 * i for i in range(10)]
    better = [0.8 * b * (1 + 0.001 * (i % 3)) for i, b in enumerate(base)]
    budget = dataclasses.replace(BUDGET, fresh_seeds=10)
    losses = {"stam": better, "stam_lite": [0.9 * b for b in better], "adamw": base}
    found = score(losses, budget=budget)
    assert [c["adjusted"]["level"] for c in found["comparisons"]] == [0.975, 0.975]
