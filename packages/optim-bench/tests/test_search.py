"""The halved search, the points over several hyperparameters, and the replay."""

import dataclasses
import importlib
import json
import math
from pathlib import Path

import pytest
from optim_bench.errors import UsageError
from optim_bench.optimizers import OptimizerInfo, learning_rate, resolve
from optim_bench.protocol import TIERS, Budget, Cell, Plan, expected_runs, next_specs, tuning_of
from optim_bench.protocol.catalog import Request, build_plan
from optim_bench.protocol.points import parse_search, points_of
from optim_bench.report.pages._groups import all_charts
from optim_bench.results.verdicts import build_results, judged_mean, other_metrics

PACKAGE = Path(__file__).parents[1]
HALVED = Budget(7, 3, 4, 4, defaults=False, halving=True)
RATE = {"learning_rate": 1e-3}
CELL = Cell("toy", 1, "jax", "adamw", "adamw", RATE, 1e-3, 0.0, 1e3, 40, "cosine")


@pytest.fixture
def carry_out(make_record):
    def run(loss_of, cell=CELL, budget=HALVED, records=None):
        records = {} if records is None else records
        while specs := next_specs(cell, budget, records):
            for spec in specs:
                records[spec.key()] = make_record(spec, loss_of(spec.hyperparameters, spec.seed))
        return records

    return run


def bowl(best):
    return lambda values, seed: math.exp(math.log10(values["learning_rate"] / best) ** 2)


def seeds_of(tuning):
    return {trial.rate: sorted(trial.losses) for trial in tuning.trials}


def test_the_first_seed_finds_the_valley_and_the_better_half_meets_the_others(carry_out):
    tuning = tuning_of(CELL, HALVED, carry_out(bowl(1e-2)))
    assert seeds_of(tuning) == {
        3.16e-4: [0], 1e-3: [0], 3.16e-3: [0, 1, 2], 1e-2: [0, 1, 2], 3.16e-2: [0, 1, 2],
    }  # fmt: skip
    assert tuning.selected == 1e-2
    assert not tuning.under_tuned


def test_a_later_seed_can_move_the_valley_beyond_what_was_tried(carry_out):
    tuning = tuning_of(CELL, HALVED, carry_out(lambda v, s: bowl(1e-3 if s == 0 else 1e-1)(v, s)))
    assert tuning.selected == 3.16e-2
    assert seeds_of(tuning)[1e-1] == [0, 1, 2]  # added on all the seeds that the others had


def test_a_point_that_was_stopped_is_not_chosen_for_the_one_seed_that_it_had(carry_out):
    table = {3.16e-4: (3.0, 0.1), 1e-3: (2.0, 2.0), 3.16e-3: (1.0, 5.0), 1e-2: (1.5, 1.0)}
    table |= {3.16e-2: (2.5, 3.0)}
    found = carry_out(lambda v, s: table[v["learning_rate"]][min(s, 1)])
    tuning = tuning_of(CELL, HALVED, found)
    assert seeds_of(tuning)[3.16e-4] == [0]
    assert tuning.selected == 1e-2


def test_the_grid_is_free_and_what_lies_beyond_is_counted(carry_out):
    tuning = tuning_of(CELL, HALVED, carry_out(bowl(1e9)))
    assert [t.rate for t in tuning.trials if t.extension] == [1e-1, 3.16e-1, 1.0, 3.16]
    assert tuning.under_tuned


def test_halving_goes_on_where_it_stopped_and_says_what_it_will_take(carry_out):
    whole = carry_out(bowl(3.16e-3))
    assert expected_runs(CELL, HALVED, {}) == 3 + 3 + 3 + 4
    assert len(whole) == 4 + 3 + 3 + 4
    for count in range(len(whole)):
        part = dict(list(whole.items())[:count])
        assert carry_out(bowl(3.16e-3), records=part).keys() == whole.keys()


def test_a_plan_from_before_keeps_its_number(make_plan):
    plain = dataclasses.replace(TIERS["standard"], halving=False)
    assert set(plain.to_json()) == {
        "grid_points", "tuning_seeds", "fresh_seeds", "extensions", "defaults",
    }  # fmt: skip
    plans = [make_plan({"jax": ("adamw",)}, budget) for budget in (plain, TIERS["standard"])]
    assert plans[0].digest() != plans[1].digest()


def test_results_show_who_was_stopped_and_compare_searches_on_shared_seeds(carry_out, make_plan):
    plan = make_plan({"jax": ("adamw",)}, HALVED)
    cell = build_results(plan, carry_out(bowl(1e-2), plan.cells[0]))["cells"][0]
    trials = cell["tuning"]["trials"]
    assert [t["learning_rate"] for t in trials if t.get("stopped")] == [3.16e-4, 1e-3]
    assert cell["tuning"]["steps"] == 11 * 40
    assert len(cell["tuning"]["best_of"]["expected"]) == 5


SEARCH = Request("quick", ("digits-cnn",), ("adamw,b1=0.8", "sgd"), ("jax",), search=("b1,eps",))


def test_every_optimizer_searches_the_same_number_of_points_through_its_own_ranges():
    plan = build_plan(SEARCH)
    adamw, sgd, baseline = plan.cells
    assert {len(cell.points) for cell in plan.cells} == {plan.budget.points} == {17}
    assert adamw.points[0] == {"learning_rate": 1e-3, "b1": 0.8, "eps": 1e-8}
    assert set(sgd.points[0]) == {"learning_rate"}  # it has neither
    for cell in plan.cells:
        rates = [point["learning_rate"] / cell.centre for point in cell.points]
        assert 0.099 < min(rates) < max(rates) < 10.1
        assert len({json.dumps(p) for p in cell.points}) == 17
    # One sequence: the same places, each in its own range.
    assert [p["learning_rate"] for p in adamw.points] == [
        p["learning_rate"] for p in baseline.points
    ]
    assert all(1e-9 <= p["eps"] <= 1e-7 for p in baseline.points)
    assert 0.5 <= min(p["b1"] for p in baseline.points) < 0.7
    assert 0.97 < max(p["b1"] for p in baseline.points) <= 0.98
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_the_points_of_a_plan_are_the_same_whenever_it_is_made_and_lie_evenly():
    info = resolve("adamw", "jax")
    budget = dataclasses.replace(TIERS["smoke"], search=("weight_decay=1e-3:0.1",))
    centre = {"learning_rate": 1e-3, "weight_decay": 0.01}
    _, *points = points_of(info, centre, (1e-4, 1e-2), budget)
    assert points == list(points_of(info, centre, (1e-4, 1e-2), budget)[1:])
    # Of eight points of a Sobol sequence, one lies in each eighth of every axis.
    for name, low in (("learning_rate", 1e-4), ("weight_decay", 1e-3)):
        places = [4 * math.log10(p[name] / low) for p in points]
        assert all(-0.01 < place < 8.01 for place in places)
        assert len({round(place - 0.5) for place in places}) >= 7  # three digits may cross a border


def test_the_best_point_is_run_on_the_fresh_seeds_with_all_its_values(carry_out, make_plan):
    plan = build_plan(SEARCH)
    cell = plan.cells[0]

    def loss(values, seed):
        return bowl(2e-3)(values, seed) + abs(math.log(values["b1"] / 0.9))

    records = carry_out(loss, cell, plan.budget)
    best = tuning_of(cell, plan.budget, records).best
    fresh = [r.spec.hyperparameters for r in records.values() if r.spec.seed >= 100]
    assert best.values["b1"] != 0.8
    assert all(values == {**fresh[0], **best.values} for values in fresh)
    only = dataclasses.replace(plan, cells=(cell, plan.cells[2]), family=())
    measured = build_results(only, records)["cells"][0]["tuning"]
    assert measured["values"] == best.values
    assert sum("stopped" in trial for trial in measured["trials"]) == 17 - 9


def mine(learning_rate, momentum=0.5): ...


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (["b1,b1"], "search names b1 twice"),
        (["b1=1:0"], "search has 'b1=1:0'; write name, or name=low:high"),
        (["learning_rate=1:2"], "learning_rate is searched around each optimizer's own centre"),
        (["bb"], "no optimizer here has a hyperparameter named 'bb'"),
        (["b1=0.5:1.5"], r"jax/adamw: b1=1.5 has to lie in \[0, 1\)"),
    ],
)
def test_a_search_that_cannot_be_is_refused(search, message):
    with pytest.raises(UsageError, match=message):
        build_plan(dataclasses.replace(SEARCH, search=search))


def test_a_plain_factory_is_searched_by_its_signature():
    rate = {"learning_rate": learning_rate(1e-3)}
    info = OptimizerInfo("m", "jax", "m", "third-party", mine, rate, open_parameters=True)
    budget = dataclasses.replace(TIERS["smoke"], search=parse_search(["momentum"]))
    found = points_of(info, {"learning_rate": 1e-3}, (1e-4, 1e-2), budget)
    assert found[0]["momentum"] == 0.5
    assert 0.05 <= min(p["momentum"] for p in found) < max(p["momentum"] for p in found) <= 5
    flag = dataclasses.replace(info, factory=lambda learning_rate, nesterov=False: 0)
    budget = dataclasses.replace(budget, search=("nesterov",))
    with pytest.raises(UsageError, match="from which no range follows; write nesterov=low:high"):
        points_of(flag, {}, (1e-4, 1e-2), budget)


def test_a_variant_that_spells_out_defaults_is_no_second_test(make_record):
    names = ("stam,b1_base=0.9", "stam", "adamw,b1=0.9")
    plan = build_plan(Request("smoke", ("digits-cnn",), names, ("jax",)))
    assert plan.family == ("digits-cnn/jax/stam,b1_base=0.9",)
    records = {}
    for cell in plan.cells:
        while specs := next_specs(cell, plan.budget, records):
            valley = bowl(cell.centre)
            records |= {s.key(): make_record(s, valley(s.hyperparameters, 0)) for s in specs}
    second, third = build_results(plan, records)["comparisons"][1:]
    assert (second["verdict"], third["verdict"]) == ("exploratory", "exploratory")
    assert "it has the runs of STAM (published statistics; b1_base=0.9)" in second["reason"]
    assert third["reason"] == "it has the runs of AdamW and is no test beside it"


@pytest.fixture(scope="module")
def tool():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(PACKAGE / "tools")
        return importlib.import_module("replay")


@pytest.fixture(scope="module")
def evidence():
    return json.loads((PACKAGE / "evidence" / "results.json").read_text(encoding="utf-8"))


def test_the_replay_is_what_the_committed_numbers_give(tool, evidence):
    written = (PACKAGE / "evidence" / "search.md").read_text(encoding="utf-8")
    assert written == tool.page(evidence)
    found = tool.replays(evidence)
    before = sum(cell["tuning"]["steps"] for cell in evidence["cells"])
    assert sum(r.steps for r in found) <= 0.5 * before
    assert sum(r.same for r in found) >= 0.94 * len(found)


def test_the_replay_of_the_whole_grid_finds_the_committed_verdicts(tool, evidence):
    whole = [tool.Replay(c, c["tuning"]["selected"], 1) for c in evidence["cells"]]
    assert all(a["verdict"] == b["verdict"] for a, b in tool.verdicts(evidence, whole))


def test_what_diverged_everywhere_is_called_so(make_plan, make_record):
    plan = make_plan({"jax": ("stam", "adamw")}, HALVED)
    records = {}
    for cell in plan.cells:
        while specs := next_specs(cell, HALVED, records):
            loss = None if cell.label == "stam" else 1.0
            records |= {s.key(): make_record(s, loss) for s in specs}
    (found,) = build_results(plan, records)["comparisons"]
    assert found["verdict"] == "diverged"
    assert found["sentence"] == (
        "STAM on toy: no verdict; STAM diverged at every learning rate tried."
    )


def chart_kinds(results):
    return {chart.kind for chart in all_charts(results, "jax")}


def test_a_target_that_nobody_reached_has_no_chart(score):
    losses = {"stam": [2.0] * 10, "adamw": [1.0] * 10}
    assert {"reach", "profile"} <= chart_kinds(score(losses, target=3.0))
    assert not {"reach", "profile"} & chart_kinds(score(losses, target=0.1))


def test_an_interval_beyond_the_axis_ends_with_it(score):
    losses = {"stam": [30.0 + seed for seed in range(10)], "adamw": [1.0] * 10}
    charts = list(all_charts(score(losses), "jax"))
    for kind in ("forest", "pareto"):
        text = json.dumps(next(c for c in charts if c.kind == kind).layers)
        assert '"domain": [0.95, 10.0], "clamp": true' in text


def test_a_loss_and_its_ratio_are_means_of_one_kind(score):
    cells = score({"stam": [0.1, 10.0] * 5, "adamw": [1.0] * 10})["cells"]
    assert [judged_mean(cell) for cell in cells] == [pytest.approx(1.0), 1.0]
    cells[0]["fresh"]["mean"] |= {"test_accuracy": 0.5, "val_accuracy": 0.6}
    assert other_metrics(cells[0]) == "accuracy 0.5"
