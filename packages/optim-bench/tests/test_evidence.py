"""The committed evidence: the page, the README's tables and the numbers say the same."""

import copy
import importlib.util
import json
from pathlib import Path

import pytest
from optim_bench.campaign import run_campaign
from optim_bench.errors import BenchError
from optim_bench.executors import InlineExecutor
from optim_bench.memory import memory_markdown
from optim_bench.protocol import Budget
from optim_bench.report import section_of
from optim_bench.results import build_results, validate_results
from optim_bench.store import Store
from optim_bench.timing import PRESETS, preset_markdown

PACKAGE = Path(__file__).parents[1]
EVIDENCE = PACKAGE / "evidence"
README = (PACKAGE / "README.md").read_text(encoding="utf-8")
MEGABYTES = 1_000_000


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("evidence", PACKAGE / "tools" / "evidence.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def results():
    return json.loads((EVIDENCE / "results.json").read_text(encoding="utf-8"))


def numbers(name):
    return json.loads((EVIDENCE / name).read_text(encoding="utf-8"))


def test_the_numbers_are_valid_and_small(results):
    assert validate_results(results) == []
    assert sum(p.stat().st_size for p in EVIDENCE.rglob("*") if p.is_file()) < 3 * MEGABYTES


def test_the_page_is_what_the_numbers_give(tool, results):
    names = sorted(p.name for p in (EVIDENCE / "figures").iterdir())
    written = (EVIDENCE / "README.md").read_text(encoding="utf-8")
    assert sorted(tool.figure_names(results)) == names
    assert written == tool.page(results, tool.figure_names(results))


def test_the_readmes_verdicts_are_the_pages(tool, results):
    assert section_of(README, "evidence") == tool.verdicts(results)


def test_the_readmes_state_bytes_are_the_committed_ones():
    assert section_of(README, "state-bytes") == memory_markdown(numbers("state-bytes.json"))


def test_the_readmes_step_times_are_the_committed_ones():
    assert section_of(README, "step-speed") == preset_markdown(numbers("step-speed.json"))


def test_the_step_times_on_cuda_are_the_committed_ones_or_none():
    measured = (EVIDENCE / "step-speed-cuda.json").exists()
    table = preset_markdown(numbers("step-speed-cuda.json")) if measured else "Not yet measured.\n"
    assert section_of(README, "step-speed-cuda") == table


def test_the_step_times_cover_the_whole_preset():
    data = numbers("step-speed.json")
    wanted = [(g.name, c.title) for g in PRESETS["step-speed"] for c in g.contenders]
    assert [(row["group"], row["title"]) for row in data["rows"]] == wanted
    for row in data["rows"]:
        assert row["reached"] is (row["ratio"] <= row["reach"])
    stripped = [(g.name, f.title) for g in PRESETS["step-speed"] for f in g.floors]
    assert [(row["group"], row["title"]) for row in data["floors"]] == stripped


def test_every_cell_is_complete_at_the_standard_budget(results):
    assert results["protocol"]["tier"] == "standard"
    assert results["protocol"]["budget"]["fresh_seeds"] == 10
    for cell in results["cells"]:
        assert cell["tuning"]["complete"], cell["name"]
        assert cell["fresh"]["missing"] == cell["fresh"]["failed"] == 0, cell["name"]
        assert cell["defaults"]["missing"] == 0, cell["name"]


def test_every_optimizer_had_the_same_grid(results):
    for cell in results["cells"]:
        planned = [t for t in cell["tuning"]["trials"] if not t["extension"]]
        assert len(planned) == 7, cell["name"]
        assert all(len(t["val_loss"]) == 3 for t in planned)


def test_what_is_not_better_is_on_the_page_as_it_is(tool, results):
    page = (EVIDENCE / "README.md").read_text(encoding="utf-8")
    better, rest = page.split("### What is not better")
    better = better.split("### What is better")[1]
    for comparison in results["comparisons"]:
        if comparison["tests"] is not None:
            part = better if comparison["verdict"] == "better" else rest
            assert f"- {comparison['sentence']}" in part


def cell(label, losses, **tuning):
    """A measured cell of the pairs' tests; "failed" and "missing" stand for such runs."""
    runs = [
        {
            "seed": seed,
            "status": "failed" if loss == "failed" else "diverged" if loss is None else "ok",
            "test_loss": None if loss == "failed" else loss,
        }
        for seed, loss in enumerate(losses)
        if loss != "missing"
    ]
    found = {"failed": losses.count("failed"), "missing": losses.count("missing"), "runs": runs}
    return {
        "name": f"digits-cnn/torch/{label}",
        "title": label.upper(),
        "tuning": {"under_tuned": False, "failed": 0, "selected": 1e-3, "complete": True, **tuning},
        "fresh": found,
    }


def test_pairs_are_compared_seed_by_seed_with_holm_over_all(tool):
    base = [1.0 + 0.1 * s for s in range(10)]
    cells = [
        cell("stac", base),
        cell("lion", [2 * x for x in base]),
        cell("signum", base, under_tuned=True),
        cell("stac_int8", [1.5 * x for x in base[:9]] + [None]),
    ]
    lion, signum, int8 = tool.pairs({"cells": cells}, "torch")
    assert (lion["other"], lion["ratio"], lion["outcome"]) == ("LION", pytest.approx(0.5), "lower")
    assert lion["p_adjusted"] == pytest.approx(3 * 2 / 2**10)
    assert signum["outcome"] == "under-tuned, not ranked"
    assert int8["outcome"] == "diverged, not ranked"


@pytest.mark.parametrize("mine", [True, False])
@pytest.mark.parametrize(
    ("last", "tuning", "outcome"),
    [
        (1.9, {}, "lower"),
        ("failed", {}, "incomplete"),
        ("missing", {}, "incomplete"),
        (1.9, {"failed": 1}, "incomplete"),
    ],
)
def test_a_pair_with_runs_that_failed_or_are_missing_is_incomplete(
    tool, mine, last, tuning, outcome
):
    base = [1.0 + 0.1 * s for s in range(10)]
    losses, factor = (base, 2) if mine else ([2 * x for x in base], 0.5)
    spoilt = [*losses[:9], last], tuning
    whole = [factor * x for x in losses], {}
    (stac, a), (lion, b) = (spoilt, whole) if mine else (whole, spoilt)
    cells = [cell("stac", stac, **a), cell("lion", lion, **b)]
    (row,) = tool.pairs({"cells": cells}, "torch")
    assert row["outcome"] == outcome


def test_a_pair_whose_one_diverged_at_every_rate_is_not_called_incomplete(tool):
    nothing = cell("stac", ["missing"] * 10, selected=None, under_tuned=True)
    (row,) = tool.pairs({"cells": [nothing, cell("lion", [1.0] * 10)]}, "torch")
    assert row["outcome"] == "diverged, not ranked"


def test_the_state_column_covers_every_workload_of_the_row(tool, results):
    changed = copy.deepcopy(results)
    mine = [c for c in changed["cells"] if (c["framework"], c["label"]) == ("jax", "stam")]
    for index, found in enumerate(mine):
        found["state_bytes"] = (3 if index == 1 else 2) * found["parameter_bytes"]
    title = mine[0]["title"]
    rows = [line for line in tool.verdicts(changed).splitlines() if line.startswith(f"| {title} |")]
    assert [row.rsplit("|", 2)[1].strip() for row in rows] == ["2 to 3"]
    mine[1]["state_bytes"] = 2 * mine[1]["parameter_bytes"]
    (row,) = (x for x in tool.verdicts(changed).splitlines() if x.startswith(f"| {title} |"))
    assert row.endswith(" | 2 |")


def test_training_keeps_every_other_run_out_of_its_folder(
    tool, make_plan, trainer, monkeypatch, tmp_path
):
    budget = Budget(grid_points=3, tuning_seeds=1, fresh_seeds=2, extensions=1, defaults=False)
    plan = make_plan({"jax": ("stam", "adamw")}, budget)
    trained = []

    def campaign(given, store, workers, listener):
        with pytest.raises(BenchError, match="another optim-bench run is at work"):
            store.exclusive().__enter__()
        assert store.plan() == given
        trained.append(store.root.name)

    monkeypatch.setattr(tool, "WORKLOADS", ("toy",))
    monkeypatch.setattr(tool, "build_plan", lambda request: plan)
    monkeypatch.setattr(tool, "make_executor", lambda *a, **k: InlineExecutor(trainer))
    monkeypatch.setattr(tool, "run_campaign", campaign)
    tool.train(tmp_path / "free", None)
    assert trained == ["jax-toy", "torch-toy"]

    store = Store(tmp_path / "taken" / "jax-toy")
    store.open()
    refused = pytest.raises(BenchError, match=r"another optim-bench run is at work in .*jax-toy")
    with store.exclusive(), refused:
        tool.train(tmp_path / "taken", None)
    assert not (store.root / "plan.json").exists()


def test_the_page_takes_what_is_complete_and_names_what_is_not(tool, make_plan, trainer, tmp_path):
    budget = Budget(grid_points=3, tuning_seeds=1, fresh_seeds=2, extensions=1, defaults=False)
    with pytest.raises(SystemExit, match=r"no comparison in .* is complete"):
        tool.collect(tmp_path)
    for framework, ours in (("jax", "stam"), ("torch", "stac")):
        store = Store(tmp_path / f"{framework}-shakespeare-char")
        store.open()
        plan = make_plan({framework: (ours, "adamw")}, budget, workloads=("shakespeare-char",))
        store.register(plan)
        run_campaign(plan, store, InlineExecutor(trainer), lambda progress: None)
    next(store.runs.glob("*.json")).unlink()
    results = build_results(*tool.collect(tmp_path))
    text = tool.page(results, tool.figure_names(results))
    rest = "digits-cnn, diamonds-mlp, permuted-digits, digits-noisy, shifted-mlp, patches-denoise"
    assert f"- JAX: shakespeare-char; not complete, so not here: {rest}.\n" in text
    assert f"- PyTorch: none; not complete, so not here: {rest}, shakespeare-char.\n" in text
    assert text == tool.page(build_results(*tool.collect(tmp_path)), tool.figure_names(results))
