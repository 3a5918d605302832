"""The committed evidence: the pages and the numbers say the same."""

import copy
import importlib
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from optim_bench.errors import BenchError
from optim_bench.executors import InlineExecutor
from optim_bench.optimizers import resolve
from optim_bench.protocol import Budget
from optim_bench.protocol.campaign import run_campaign
from optim_bench.report.memory import memory_markdown
from optim_bench.report.pages import section_of
from optim_bench.report.timing import PRESETS, preset_markdown
from optim_bench.results.store import Store
from optim_bench.results.verdicts import build_results, validate_results, verdict_sentence
from optim_bench.tasks.built_in import get

PACKAGE = Path(__file__).parents[1]
EVIDENCE = PACKAGE / "evidence"
COSTS = (EVIDENCE / "costs.md").read_text(encoding="utf-8")
MEGABYTES = 1_000_000


@pytest.fixture(scope="module")
def tool():
    """The module `evidence`, which finds `evidence_page` beside it as a script does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(PACKAGE / "tools")
        return importlib.import_module("evidence")


@pytest.fixture(scope="module")
def pages(tool):
    return sys.modules["evidence_page"]


@pytest.fixture(scope="module")
def results():
    return json.loads((EVIDENCE / "results.json").read_text(encoding="utf-8"))


def numbers(name):
    return json.loads((EVIDENCE / name).read_text(encoding="utf-8"))


def test_the_numbers_are_valid_and_small(results):
    assert validate_results(results) == []
    assert sum(p.stat().st_size for p in EVIDENCE.rglob("*") if p.is_file()) < 3 * MEGABYTES


def test_what_the_committed_results_name_is_found(results):
    named = {(cell["framework"], cell["optimizer"]) for cell in results["cells"]}
    assert len(named) == 13
    for framework, name in named:
        assert callable(resolve(name, framework).load_factory()), name
    versions = {facts["name"]: facts["version"] for facts in results["workloads"]}
    assert {name: get(name).version for name in versions} == versions


def test_the_page_is_what_the_numbers_give(tool, results):
    names = sorted(p.name for p in (EVIDENCE / "figures").iterdir())
    written = (EVIDENCE / "README.md").read_text(encoding="utf-8")
    assert sorted(tool.figure_names(results)) == names
    assert written == tool.page(results, tool.WORKLOADS)


def test_the_page_shows_every_figure_under_its_own_words(tool, results):
    text = tool.page(results, tool.WORKLOADS)
    shown = re.findall(r"!\[(.+?)\]\(figures/(.+?)\)", text)
    assert [name for _, name in shown] == tool.figure_names(results)
    assert len({words for words, _ in shown}) == len(shown) > 3


def test_the_pages_state_bytes_are_the_committed_ones():
    assert section_of(COSTS, "state-bytes") == memory_markdown(numbers("state-bytes.json"))


def test_the_pages_step_times_are_the_committed_ones():
    assert section_of(COSTS, "step-speed") == preset_markdown(numbers("step-speed.json"))


def test_the_step_times_on_cuda_are_the_committed_ones_or_none():
    measured = (EVIDENCE / "step-speed-cuda.json").exists()
    table = preset_markdown(numbers("step-speed-cuda.json")) if measured else ""
    assert section_of(COSTS, "step-speed-cuda") == table


def test_the_page_for_two_threads_is_the_committed_one():
    page = (EVIDENCE / "costs-2-threads.md").read_text(encoding="utf-8")
    data = numbers("step-speed-2-threads.json")
    assert data["threads"] == 2
    assert section_of(page, "step-speed") == preset_markdown(data)


def test_the_page_of_four_bits_is_what_its_numbers_give(tool):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(PACKAGE / "tools")
        four_bits = importlib.import_module("four_bits")
    data = numbers("int4.json")
    assert validate_results(data) == []
    assert {c["workload"] for c in data["cells"]} == {*tool.WORKLOADS}
    labels = {c["label"] for c in data["cells"]}
    assert labels == {four_bits.FOUR, four_bits.EIGHT, "adamw"}
    for cell in data["cells"]:
        assert (cell["fresh"]["planned"], cell["fresh"]["missing"], cell["fresh"]["failed"]) == (
            10,
            0,
            0,
        )
    page = (EVIDENCE / "int4.md").read_text(encoding="utf-8")
    assert page == four_bits.page(data)
    for part, label in enumerate((four_bits.FOUR, four_bits.EIGHT), start=2):
        for found in (c for c in data["comparisons"] if c["label"] == label):
            (line,) = (x for x in page.splitlines() if x.startswith(f"| {found['workload']} "))
            assert f"{found['ratio']:.2f} (" in line.split("|")[part]
    guide = (EVIDENCE.parents[1] / "stac-torch" / "GUIDE.md").read_text(encoding="utf-8")
    assert "worse on none; better on none." in page
    assert "nowhere detectably worse than 8" in guide
    ratio, low, high = re.search(r"the ratio is (\S+) \((\S+) to (\S+)\)", page).groups()
    assert f"({ratio}, from {low} to {high})" in guide


def test_the_costs_of_stac_torch_are_the_committed_ones():
    page = (EVIDENCE.parents[1] / "stac-torch" / "README.md").read_text(encoding="utf-8")
    section = page.partition("## What a step costs\n")[2].partition("\n## ")[0]
    shown = re.findall(r"\| (.+) \| (.+) \| (\d\.\d\d) \| (\d\.\d\d) \|", section)
    assert len(shown) == 6
    for title, baseline, *ratios in shown:
        for name, ratio in zip(
            ("step-speed.json", "step-speed-2-threads.json"), ratios, strict=True
        ):
            rows = [r for r in numbers(name)["rows"] if r["title"] == title]
            (row,) = (r for r in rows if r["baseline"] == baseline)
            assert f"{row['ratio']:.2f}" == ratio


@pytest.mark.parametrize("name", ["step-speed.json", "step-speed-2-threads.json"])
def test_the_step_times_cover_the_whole_preset(name):
    data = numbers(name)
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


def test_every_committed_sentence_is_what_its_numbers_say_today(results):
    for comparison in results["comparisons"]:
        assert comparison["sentence"] == verdict_sentence(comparison, "AdamW")
    for search in results["searches"]:
        for comparison in search["comparisons"]:
            assert comparison["sentence"] == verdict_sentence(comparison, search["title"])


BASE = [1.0 + 0.1 * seed for seed in range(10)]


def torch(losses, workload="digits-cnn"):
    """What `score` takes for optimizers of PyTorch, beside a baseline."""
    given = {**losses, "adamw": BASE}
    return {"losses": given, "frameworks": {"torch": tuple(given)}, "workloads": (workload,)}


def test_pairs_are_compared_seed_by_seed_each_a_question_of_its_own(pages, score):
    losses = {"lion": [2 * x for x in BASE], "stac": BASE, "signum": BASE}
    losses["stac_int8"] = [*BASE[:9], None]
    results = score(**torch(losses), edge=("signum",))
    lion, signum, int8 = pages.pairs(results, "torch")
    assert (lion["other"], lion["ratio"], lion["verdict"]) == ("LION", pytest.approx(0.5), "better")
    assert lion["p_adjusted"] == pytest.approx(2 / 2**10)
    assert signum["verdict"] == "under-tuned"
    assert int8["verdict"] == "unstable"


def test_a_pair_on_a_synthetic_workload_is_no_test(pages, score):
    losses = {"stac": BASE, "lion": [2 * x for x in BASE]}
    (row,) = pages.pairs(score(**torch(losses), kind="synthetic"), "torch")
    assert (row["verdict"], row["p_adjusted"], row["tests"]) == ("exploratory", None, None)
    assert row["ratio"] == pytest.approx(0.5)


def test_a_pair_is_corrected_over_its_workloads_and_not_over_other_pairs(pages, score):
    given = torch({"stac": BASE, "lion": [2 * x for x in BASE], "stac_plain": BASE})
    results = score(**given | {"workloads": ("digits-cnn", "diamonds-mlp")})
    lion = [row for row in pages.pairs(results, "torch") if row["other"] == "LION"]
    assert [row["workload"] for row in lion] == ["digits-cnn", "diamonds-mlp"]
    for row in lion:
        assert (row["verdict"], row["tests"]) == ("better", 2)
        assert row["p_adjusted"] == pytest.approx(2 * 2 / 2**10)


@pytest.mark.parametrize("spoilt", ["stac", "lion"])
@pytest.mark.parametrize("last", ["failed", "missing"])
def test_a_pair_with_runs_that_failed_or_are_missing_is_incomplete(pages, score, spoilt, last):
    losses = {"stac": BASE, "lion": [2 * x for x in BASE]}
    losses[spoilt] = [*losses[spoilt][:9], last]
    (row,) = pages.pairs(score(**torch(losses)), "torch")
    assert row["verdict"] == "incomplete"


def test_a_pair_is_not_better_than_the_others_default(pages, score):
    budget = Budget(grid_points=3, tuning_seeds=1, fresh_seeds=10, extensions=0, defaults=True)
    losses = {"stac": BASE, "lion": [2 * x for x in BASE]}
    results = score(**torch(losses), budget=budget)
    assert pages.pairs(results, "torch")[0]["verdict"] == "better"
    (lion,) = (c for c in results["cells"] if c["label"] == "lion")
    for run, loss in zip(lion["defaults"]["runs"], BASE, strict=True):
        run["test_loss"] = loss
    (row,) = pages.pairs(results, "torch")
    assert row["verdict"] == "not confirmed"
    text = "\n".join(pages._pair_table(results, "torch"))
    assert "| digits-cnn | 0.50 (0.50 to 0.50) p = 0.002, not confirmed |" in text
    lion["defaults"]["missing"] = 1
    assert pages.pairs(results, "torch")[0]["verdict"] == "incomplete"


def test_what_a_search_was_worth_is_told_against_the_default_rate(pages, score):
    budget = Budget(grid_points=3, tuning_seeds=1, fresh_seeds=10, extensions=0, defaults=True)
    results = score(**torch({"stac": BASE}), budget=budget)
    assert "| digits-cnn | the default | the default |" in list(pages._worth(results))
    (adamw,) = (c for c in results["cells"] if c["label"] == "adamw")
    adamw["defaults"]["learning_rate"] = 0.1
    for run in adamw["defaults"]["runs"]:
        run["test_loss"] /= 2
    assert "| digits-cnn | the default | 2.00 (2.00 to 2.00) |" in list(pages._worth(results))
    adamw["defaults"]["runs"][0]["test_loss"] = None
    assert "| digits-cnn | the default | diverged |" in list(pages._worth(results))


def test_a_choice_that_hangs_on_one_tuning_seed_is_named(pages, score):
    budget = Budget(grid_points=3, tuning_seeds=3, fresh_seeds=10, extensions=0, defaults=False)
    results = score(**torch({"stac": BASE}), budget=budget)
    assert "every search chooses the same." in list(pages._worth(results))[-1]
    (adamw,) = (c for c in results["cells"] if c["label"] == "adamw")
    # Worse on average than the chosen 0.001, at a loss of 1, and better without the last seed.
    adamw["tuning"]["trials"][0]["val_loss"] = [0.1, 9.0, 9.0]
    adamw["tuning"]["trials"][2]["val_loss"] = [0.0, 0.0, None]
    assert list(pages._worth(results))[-1] == (
        "- digits-cnn in PyTorch: ADAMW took 0.001, without one of them 0.000316 or 0.00316."
    )


def test_one_experiment_under_two_names_is_called_one(pages, score):
    losses = {"stac": [0.5] * 10, "stac_wide": [0.5] * 10, "stac_int8": [*[0.5] * 9, 0.51]}
    sentence = (
        "STAC and STAC_WIDE gave the same losses, seed by seed, on digits-cnn: one finding there, "
        "although each counts as a test."
    )
    assert pages.verdicts(score(**torch(losses))).splitlines()[-1] == sentence
    nothing = {"stac": ["missing"] * 10, "stac_wide": ["missing"] * 10}
    assert "gave the same losses" not in pages.verdicts(score(**torch(nothing)))


def test_a_synthetic_workload_stands_beside_the_verdicts_as_such(pages, results):
    lines = pages.verdicts(results).splitlines()
    synthetic = {w["name"] for w in results["workloads"] if w["kind"] == "synthetic"}
    for name in {c["workload"] for c in results["cells"]}:
        title = f"{name} (synthetic)" if name in synthetic else name
        for line in (line for line in lines if line.startswith(f"| {name} ")):
            assert line.startswith(f"| {title} |")
            assert ("exploratory" in line) is (name in synthetic)


def test_the_section_on_b1_shows_what_the_choice_was_and_was_worth(pages, results):
    lines = list(pages._searched(results))
    for search in results["searches"]:
        (line,) = (line for line in lines if line.startswith(f"| {search['workload']} "))
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[1] == f"`{search['chosen']}`"
        shown = [c for c in search["comparisons"] if c["label"].startswith("stam")]
        plain = [c for c in search["comparisons"] if c["label"] == "adamw"]
        for cell, found in zip(cells[2:], [*shown, *plain], strict=True):
            wanted = found["ratio"] and f"{found['ratio']:.2f} ("
            if found["label"] == search["chosen"]:
                wanted = "the chosen one"
            assert cell.startswith(wanted or ("diverged", "under-tuned"))


def test_an_adamw_that_diverged_has_no_worth(pages, results):
    changed = copy.deepcopy(results)
    search = next(s for s in changed["searches"] if s["chosen"] != "adamw")
    plain = next(c for c in search["comparisons"] if c["label"] == "adamw")
    plain |= {"verdict": "unstable", "low": None, "high": None, "ratio": None}
    lines = list(pages._searched(changed))
    (line,) = (line for line in lines if line.startswith(f"| {search['workload']} "))
    assert line.endswith("| diverged, not ranked |")


def test_the_state_line_covers_every_workload_of_a_column(pages, results):
    changed = copy.deepcopy(results)
    mine = [c for c in changed["cells"] if (c["framework"], c["label"]) == ("jax", "stam")]
    for index, found in enumerate(mine):
        found["state_bytes"] = (3 if index == 1 else 2) * found["parameter_bytes"]

    def shown():
        lines = pages.verdicts(changed).splitlines()
        return next(x for x in lines if x.startswith("| state / parameters |")).split("|")[2]

    assert shown() == " 2 to 3 "
    mine[1]["state_bytes"] = 2 * mine[1]["parameter_bytes"]
    assert shown() == " 2 "


def test_the_page_of_the_committed_numbers_can_be_written_anew(tool, monkeypatch, tmp_path):
    shutil.copytree(EVIDENCE, tmp_path / "evidence")
    (tmp_path / "evidence" / "README.md").write_text("old")
    monkeypatch.setattr(tool, "EVIDENCE", tmp_path / "evidence")
    monkeypatch.setattr(tool, "figures", lambda results, names: [])
    tool.main(["--render"])
    for name in ("README.md", "results.json"):
        assert (tmp_path / "evidence" / name).read_bytes() == (EVIDENCE / name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one of the arguments stores --render is required"),
        (["runs", "--render"], "not allowed with argument"),
        (["--render", "--jobs", "2"], "--no-train and --jobs are for the folder"),
        (["--render", "--no-train"], "--no-train and --jobs are for the folder"),
    ],
)
def test_the_command_says_what_does_not_go_together(tool, capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        tool.main(arguments)
    assert message in capsys.readouterr().err


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
    text = tool.page(results, tool.WORKLOADS)
    rest = "digits-cnn, diamonds-mlp, permuted-digits, digits-noisy, shifted-mlp, patches-denoise"
    assert f"- JAX: shakespeare-char; not complete, so not here: {rest}.\n" in text
    assert f"- PyTorch: none; not complete, so not here: {rest}, shakespeare-char.\n" in text
    assert text == tool.page(build_results(*tool.collect(tmp_path)), tool.WORKLOADS)
