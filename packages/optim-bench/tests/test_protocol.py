"""Which runs are planned: grids, their growth, selection, fresh seeds."""

import dataclasses
import math

import pytest
from optim_bench.errors import UsageError
from optim_bench.protocol import (
    TIERS,
    Budget,
    Cell,
    Phase,
    Plan,
    expected_runs,
    known_specs,
    next_specs,
    phase_of,
    tuning_of,
)
from optim_bench.protocol.catalog import Request, build_plan

BUDGET = Budget(grid_points=3, tuning_seeds=2, fresh_seeds=4, extensions=2, defaults=False)


@pytest.fixture
def cell() -> Cell:
    rate = {"learning_rate": 1e-3}
    return Cell("toy", 1, "jax", "adamw", "adamw", rate, 1e-3, 0.0, 1.0, 40, "cosine")


@pytest.fixture
def carry_out(make_record):
    """Run a cell to its end with a loss per learning rate; returns the records."""

    def run(cell, loss_of, budget=BUDGET, records=None):
        records = {} if records is None else records
        while specs := next_specs(cell, budget, records):
            for spec in specs:
                loss = loss_of(spec.hyperparameters["learning_rate"], spec.seed)
                records[spec.key()] = make_record(spec, loss)
        return records

    return run


def bowl(best):
    return lambda rate, seed: math.exp(math.log10(rate / best) ** 2)


def rates(tuning):
    return [trial.rate for trial in tuning.trials]


def test_first_come_the_grid_and_the_tuning_seeds(cell):
    specs = next_specs(cell, BUDGET, {})
    assert {spec.hyperparameters["learning_rate"] for spec in specs} == {3.16e-4, 1e-3, 3.16e-3}
    assert {spec.seed for spec in specs} == {0, 1}
    assert len(specs) == 6
    assert phase_of(cell, BUDGET, {}) is Phase.TUNING


def test_a_best_rate_inside_the_grid_goes_to_fresh_seeds(cell, carry_out):
    records = carry_out(cell, bowl(1e-3))
    fresh = [r.spec for r in records.values() if r.spec.seed not in (0, 1)]
    assert {spec.hyperparameters["learning_rate"] for spec in fresh} == {1e-3}
    assert {spec.seed for spec in fresh} == {100, 101, 102, 103}
    assert phase_of(cell, BUDGET, records) is Phase.DONE


def test_no_tier_ever_reports_a_seed_that_tuned():
    for budget in TIERS.values():
        assert not set(budget.tuning) & set(budget.fresh)


@pytest.mark.parametrize(
    ("best", "expected"),
    [(1e-2, [3.16e-4, 1e-3, 3.16e-3, 1e-2, 3.16e-2]), (3.16e-4, [1e-4, 3.16e-4, 1e-3, 3.16e-3])],
)
def test_the_grid_grows_beyond_the_edge_that_is_best(cell, carry_out, best, expected):
    tuning = tuning_of(cell, BUDGET, carry_out(cell, bowl(best)))
    assert rates(tuning) == expected
    assert tuning.selected == best
    assert not tuning.under_tuned
    assert [trial.extension for trial in tuning.trials].count(True) == len(expected) - 3


def test_a_grid_that_may_not_grow_far_enough_is_under_tuned(cell, carry_out):
    tuning = tuning_of(cell, BUDGET, carry_out(cell, bowl(1.0)))
    assert rates(tuning)[-1] == 3.16e-2
    assert tuning.selected == 3.16e-2
    assert tuning.under_tuned


def test_the_declared_range_ends_the_growth(carry_out):
    rate = {"learning_rate": 1e-3}
    narrow = Cell("toy", 1, "jax", "adamw", "adamw", rate, 1e-3, 0.0, 5e-3, 40, "cosine")
    tuning = tuning_of(narrow, BUDGET, carry_out(narrow, bowl(1.0)))
    assert rates(tuning) == [3.16e-4, 1e-3, 3.16e-3]
    assert tuning.under_tuned


def test_a_range_that_holds_no_grid_point_is_refused():
    rate = {"learning_rate": 1e-3}
    empty = Cell("toy", 1, "jax", "adamw", "adamw", rate, 1e-3, 0.5, 1.0, 40, "cosine")
    with pytest.raises(ValueError, match=r"no grid point around 0.001 is in \[0.5, 1\]"):
        next_specs(empty, BUDGET, {})


def test_one_divergence_disqualifies_a_rate(cell, carry_out):
    def loss_of(rate, seed):
        return None if rate == 3.16e-3 and seed == 1 else 1 / rate

    tuning = tuning_of(cell, BUDGET, carry_out(cell, loss_of))
    assert tuning.selected == 1e-3
    assert not tuning.under_tuned
    assert tuning.trials[-1].score == math.inf


def test_where_everything_diverges_the_search_goes_down_and_then_gives_up(cell, carry_out):
    records = carry_out(cell, lambda rate, seed: None)
    tuning = tuning_of(cell, BUDGET, records)
    assert rates(tuning) == [3.16e-5, 1e-4, 3.16e-4, 1e-3, 3.16e-3]
    assert tuning.selected is None
    assert tuning.under_tuned
    assert {r.spec.seed for r in records.values()} == {0, 1}


def test_divergence_above_is_no_edge(cell, carry_out):
    tuning = tuning_of(cell, BUDGET, carry_out(cell, lambda r, s: None if r > 1e-3 else 1 / r))
    assert tuning.selected == 1e-3
    assert not tuning.under_tuned


def test_selection_averages_logs_not_losses(cell, carry_out):
    # Means: 2.05 at 1e-3, 1.5 at 3.16e-4. Mean logs: log(.63) at 1e-3, log(1.41) at 3.16e-4.
    table = {3.16e-4: (1.0, 2.0), 1e-3: (0.1, 4.0), 3.16e-3: (9.0, 9.0)}
    records = carry_out(cell, lambda rate, seed: table[rate][seed % 2])
    assert tuning_of(cell, BUDGET, records).selected == 1e-3


def test_a_tie_goes_to_the_smaller_rate(cell, carry_out):
    budget = Budget(5, 1, 1, 0, defaults=False)
    table = {1e-4: 9.0, 3.16e-4: 1.0, 1e-3: 1.0, 3.16e-3: 1.0, 1e-2: 9.0}
    assert (
        tuning_of(cell, budget, carry_out(cell, lambda r, s: table[r], budget)).selected == 3.16e-4
    )


def test_a_loss_of_zero_can_be_selected(cell, carry_out):
    records = carry_out(cell, lambda rate, seed: 0.0 if rate == 1e-3 else 1.0)
    assert tuning_of(cell, BUDGET, records).selected == 1e-3


def test_defaults_run_on_the_fresh_seeds_unless_they_were_selected(cell, carry_out):
    budget = Budget(3, 2, 4, 2, defaults=True)
    same = carry_out(cell, bowl(1e-3), budget)
    other = carry_out(cell, bowl(1e-2), budget)
    assert sum(r.spec.seed >= 100 for r in same.values()) == 4
    assert sum(r.spec.seed >= 100 for r in other.values()) == 8


def test_resuming_asks_only_for_what_is_missing(cell, carry_out, make_record):
    whole = carry_out(cell, bowl(1e-2))
    for count in range(len(whole)):
        part = dict(list(whole.items())[:count])
        assert not {s.key() for s in next_specs(cell, BUDGET, part)} & set(part)
        assert carry_out(cell, bowl(1e-2), records=part).keys() == whole.keys()


def test_expected_runs_agree_with_the_end(cell, carry_out):
    records = carry_out(cell, bowl(1e-3))
    assert expected_runs(cell, BUDGET, {}) == 10
    assert expected_runs(cell, BUDGET, records) == len(records) == 10
    assert {spec.key() for spec in known_specs(cell, BUDGET, records)} == set(records)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid_points": 4}, "grid_points is 4; a centred grid has an odd number"),
        ({"tuning_seeds": 0}, "tuning_seeds is 0; use 1 to 100"),
        ({"fresh_seeds": 21}, "seeds is 21; use 1 to 20"),
        ({"extensions": -1}, "extensions is -1; use 0 or more"),
    ],
)
def test_budgets_out_of_range_are_refused(changes, message):
    fields = {"grid_points": 3, "tuning_seeds": 1, "fresh_seeds": 1, "extensions": 0}
    with pytest.raises(ValueError, match=message):
        Budget(**{**fields, **changes}, defaults=False)


def test_a_plan_survives_json(make_plan):
    plan = make_plan({"jax": ("stam", "adamw")}, BUDGET)
    assert Plan.from_json(plan.to_json()) == plan
    assert Plan.from_json(plan.to_json()).digest() == plan.digest()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"protocol": "v0"}, "protocol is 'v0'; this version reads v1"),
        ({"cells": [{"workload": "toy"}]}, "lacks a field or has a strange one"),
    ],
)
def test_a_foreign_plan_is_refused(make_plan, change, message):
    data = {**make_plan({"jax": ("adamw",)}, BUDGET).to_json(), **change}
    with pytest.raises(ValueError, match=message):
        Plan.from_json(data)


def test_a_plan_needs_its_baseline(make_plan):
    with pytest.raises(ValueError, match=r"toy/jax/stam has no baseline; adamw has to run on toy"):
        make_plan({"jax": ("stam",)}, BUDGET)


def test_a_plan_has_each_cell_once(make_plan):
    with pytest.raises(ValueError, match="toy/jax/adamw given twice"):
        make_plan({"jax": ("adamw", "adamw")}, BUDGET)


def test_a_family_has_at_most_25_tests(make_plan):
    workloads = tuple(f"w{i}" for i in range(13))
    with pytest.raises(ValueError, match="26 tests in jax; at most 25"):
        make_plan({"jax": ("stam", "stam_lite", "adamw")}, BUDGET, workloads=workloads)


def test_the_main_job_is_the_family_and_its_baselines_on_real_data():
    plan = build_plan(Request())
    assert {c.workload for c in plan.cells} == {"digits-cnn", "diamonds-mlp"}
    assert {c.label for c in plan.cells if c.framework == "jax"} == {"stam", "stam_lite", "adamw"}
    assert {c.label for c in plan.cells if c.framework == "torch"} == {"stac", "adamw"}
    assert len(plan.family) == 6


def test_a_variant_keeps_its_settings_and_moves_the_grid():
    request = Request(optimizers=("adamw,b1=0.95,learning_rate=0.01",), frameworks=("jax",))
    plan = build_plan(request)
    variant, baseline = plan.cells[:2]
    assert variant.label == "adamw,b1=0.95,learning_rate=0.01"
    assert variant.hyperparameters["b1"] == 0.95
    assert variant.centre == 0.01
    assert baseline.label == "adamw"
    # Named before the first run, so it is a test; the plain AdamW is what it is tested against.
    assert plan.family == tuple(c.name for c in plan.cells if c.label == variant.label)
    apart = dataclasses.replace(request, exploratory=(variant.label,))
    assert build_plan(apart).family == ()
    assert plan.titles["jax/adamw,b1=0.95,learning_rate=0.01"].startswith("AdamW (b1=0.95")


def test_two_schedules_are_two_entries():
    request = Request("smoke", ("digits-cnn",), ("adamw,schedule=wsd", "stac"), ("torch",))
    cells = {cell.label: cell for cell in build_plan(request).cells}
    assert {label: cell.schedule for label, cell in cells.items()} == {
        "adamw,schedule=wsd": "wsd", "stac": "cosine", "adamw": "cosine",
    }  # fmt: skip
    assert "schedule" not in cells["adamw,schedule=wsd"].hyperparameters
    keys = {cell.spec(1e-3, 0).key() for cell in cells.values() if cell.optimizer == "adamw"}
    assert len(keys) == 2


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ("adamw,schedule=step", "adamw: schedule is 'step'; choose from cosine, constant, linear"),
        ("schedule_free_adamw,schedule=wsd", "it has a schedule of its own, constant"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(optimizer, message):
    with pytest.raises(UsageError, match=message):
        build_plan(Request("smoke", ("digits-cnn",), (optimizer,), ("jax",)))
