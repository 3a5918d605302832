"""The one call, from names and from objects, and what it says before it spends anything."""

import csv
import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import optim_bench
import pytest
from optim_bench import BenchError, TorchTask, UsageError, compare, forecast
from optim_bench.cli import build_app, run_app
from optim_bench.cli.compare import DEFAULT_OUTPUT
from optim_bench.cli.comparison import _latex
from optim_bench.protocol.budget import DESIGNS, Allowance, Cost, choose, fewest_seeds, runs_of
from optim_bench.protocol.catalog import Request, build_plan
from optim_bench.results.store import Store
from optim_bench.results.verdicts import LABELS

TASK = """
import torch
from torch.nn import functional as F
from optim_bench import TorchTask

x = torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
y, parts = (x[:, :1] * x[:, 1:2]), {"val": slice(200, 250), "test": slice(250, 300)}

def batches(seed):
    rng = torch.Generator().manual_seed(seed)
    while True:
        yield (i := torch.randint(200, (16,), generator=rng)).new_tensor(0) + x[i], y[i]

task = TorchTask(
    lambda seed: torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)),
    batches,
    lambda model, batch: F.mse_loss(model(batch[0]), batch[1]),
    lambda model, split: {"loss": F.mse_loss(model(x[parts[split]]), y[parts[split]]).item()},
    steps=20,
)

def mine(model, learning_rate):
    return torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=0.9)

def broken(model, learning_rate):
    raise RuntimeError("no such luck")
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "products.py").write_text(TASK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("products", None)


@pytest.fixture
def command(folder, capfd):
    def run(*arguments):
        status = run_app(build_app(), ["run", *arguments])
        out, err = capfd.readouterr()
        return status, out, err

    return run


OWN = ("products.py:task", ["products.py:mine"])
SHORT = {"tier": "smoke", "seeds": 6, "executor": "inline", "quiet": True}


def test_the_package_loads_nothing_until_it_is_asked():
    code = (
        "import time, sys; start = time.process_time(); import optim_bench\n"
        "spent = time.process_time() - start\n"
        "heavy = {'jax', 'torch', 'scipy', 'numpy', 'rich', 'typer'} & set(sys.modules)\n"
        "print(spent < 0.1, sorted(heavy), set(optim_bench.__all__) <= set(dir(optim_bench)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True [] True\n"


def test_a_tasks_module_needs_no_scipy():
    code = "from optim_bench import TorchTask, JaxTask; import sys; print('scipy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_every_public_name_is_there_and_no_other():
    assert all(getattr(optim_bench, name) is not None for name in optim_bench.__all__)
    assert callable(optim_bench.compare)
    with pytest.raises(AttributeError, match="has no attribute 'comparison_of'"):
        _ = optim_bench.comparison_of


@pytest.fixture
def found(folder):
    return compare(*OWN, **SHORT, output=folder / "out")


def test_a_file_of_the_users_gives_a_verdict_and_every_form_of_it(found, folder):
    (verdict,) = found.verdicts
    assert (verdict.task, verdict.optimizer, verdict.seeds) == ("products", "products.py:mine", 6)
    assert verdict.verdict in set(LABELS.values())
    assert str(verdict) == verdict.sentence.rstrip()
    assert "products.py:mine" in found.table() == str(found)
    rows = found.records()
    assert [row["verdict"] for row in rows] == [verdict.verdict, "baseline"]
    assert rows[0]["state_bytes"] == 4 * 65
    read = list(csv.DictReader(found.to_csv(folder / "t.csv").read_text().splitlines()))
    assert [row["optimizer"] for row in read] == ["products.py:mine", "adamw"]
    assert found.to_latex().startswith(r"\begin{tabular}")
    assert found.to_latex().count(r" \\") == 3
    page = found.report(folder / "page.html").read_text()
    assert page == (found.folder / "report.html").read_text()
    shown = found._repr_html_()
    assert shown.count("<tr>") == 3
    assert "your own task: what is said holds for runs of 20 steps" in shown


def test_signs_that_mean_something_to_latex_are_escaped():
    assert _latex(["my_opt~5 %", "a&b"]) == r"my\_opt\textasciitilde{}5 \% & a\&b \\"


def test_a_frame_is_pandas_where_it_is_installed(found, monkeypatch):
    import importlib.util
    import types

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert found.to_frame() == found.records()
    frames = types.SimpleNamespace(DataFrame=types.SimpleNamespace(from_records=lambda r: ("f", r)))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: frames)
    monkeypatch.setitem(sys.modules, "pandas", frames)
    assert found.to_frame() == ("f", found.records())


@pytest.mark.slow
def test_the_same_call_repeats_nothing_and_another_source_has_its_own_folder(folder):
    first = compare(*OWN, **SHORT)
    assert first.folder.parent == DEFAULT_OUTPUT
    before = {p: p.stat().st_mtime_ns for p in first.folder.glob("runs/*")}
    assert compare(*OWN, **SHORT).folder == first.folder
    assert {p: p.stat().st_mtime_ns for p in first.folder.glob("runs/*")} == before
    path = folder / "products.py"
    path.write_text(TASK.replace("momentum=0.9", "momentum=0.8"))
    assert compare(*OWN, **SHORT).folder != first.folder


@pytest.mark.slow
def test_objects_and_names_give_the_same_numbers(folder, found):
    import products

    def mean(comparison, label):
        (row,) = [row for row in comparison.records() if row["optimizer"] == label]
        return row["mean"]

    given = compare(products.task, [products.mine], **SHORT, output=folder / "given")
    assert mean(given, "mine") == mean(found, "products.py:mine")
    assert mean(given, "adamw") == mean(found, "adamw")


def test_an_object_does_not_leave_this_process(folder):
    import products

    options = {**SHORT, "executor": "process"}
    for task, optimizers, name in (
        (products.task, [], "task"),
        ("products.py:task", [products.mine], "mine"),
    ):
        with pytest.raises(UsageError) as caught:
            compare(task, optimizers, **options)
        assert str(caught.value) == (
            f"{name} exists in this process alone, and the executor 'process' uses others; write "
            "it into a file and name it: 'file.py:name'"
        )


BAD = [
    (("digits-cnn", "stac"), {}, "optimizers is 'stac'; it has to be a list: ['stac']"),
    (("digits-cnn", [3]), {}, "an optimizer is a int; it has to be a name, a factory or an"),
    (("digits-cnn", [print]), {}, "a plain factory may be for JAX or for PyTorch; say which: fram"),
    (("digits-cnn",), {"framework": "mxnet"}, "framework is 'mxnet'; it has to be one of jax, to"),
    (("products.py:task",), {"framework": "jax"}, "no framework is left of jax: products is for"),
    (("products.py:task",), {"budget": "soon"}, "budget is 'soon'; write a time, such as 30min"),
    (("products.py:task",), {"budget": "0min"}, "budget is '0min'; write a time, such as 30min"),
    ((3,), {}, "a task is a int; it has to be a TorchTask, a JaxTask or a name"),
    (("products.py",), {}, "'products.py' names a file; say which task of it: products.py:task"),
    (("products.py:gone",), {}, "'products.py:gone': file products.py has no gone"),
]


@pytest.mark.parametrize(("arguments", "options", "message"), BAD)
def test_what_cannot_be_meant_is_one_sentence(folder, arguments, options, message):
    with pytest.raises(UsageError) as caught:
        compare(*arguments, **options, quiet=True)
    assert str(caught.value).startswith(message)


def test_two_objects_of_one_name_are_not_one(folder):
    import products

    other = dataclasses.replace(products.task, steps=7)
    with pytest.raises(
        UsageError, match=r"^two tasks are called task; give each a name of its own"
    ):
        compare([products.task, other], quiet=True)

    (folder / "others.py").write_text("from products import task\nproducts = task\n")
    with pytest.raises(UsageError, match=r"^products.py:task and others.py:products are both call"):
        compare(["products.py:task", "others.py:products"], quiet=True)

    def mine(model, learning_rate):
        raise NotImplementedError

    with pytest.raises(UsageError, match=r"^two optimizers are called mine; give each a name"):
        compare(products.task, [products.mine, mine], quiet=True)


@pytest.mark.parametrize(("option", "value"), [("jobs", 2), ("jobs", 0), ("timeout", -1.0)])
def test_what_needs_other_processes_is_refused_for_objects(folder, option, value):
    import products

    with pytest.raises(UsageError, match=rf"^{option} is {value}, and .* in this process alone"):
        compare(products.task, quiet=True, **{option: value})


@pytest.mark.slow
def test_what_diverges_at_every_rate_is_not_called_under_tuned_alone(folder):
    import products

    task = dataclasses.replace(products.task, evaluate=lambda m, s: {"loss": float("nan")}, steps=2)
    found = compare(task, tier="smoke", optimizers=["sgd"], output=folder / "nan", quiet=True)
    notes = " ".join((found.folder / "summary.md").read_text().split())
    assert "Diverged at every learning rate tried, and therefore not ranked: task/torch/" in notes
    assert "Under-tuned and therefore" not in notes


def test_a_registered_name_cannot_be_taken(folder):
    def adamw(model, learning_rate):
        raise NotImplementedError

    with pytest.raises(UsageError, match="torch/adamw is a registered optimizer; give yours"):
        compare("products.py:task", [adamw], quiet=True)
    task = TorchTask(adamw, adamw, adamw, adamw, steps=1, name="digits-cnn")
    with pytest.raises(UsageError, match="is called digits-cnn, and so is a built-in workload"):
        compare(task, quiet=True)


def test_where_every_run_of_an_optimizer_fails_it_raises(folder):
    with pytest.raises(BenchError) as caught:
        compare("products.py:task", ["products.py:broken"], **SHORT, output=folder / "out")
    assert str(caught.value) == (
        "every run of products.py:broken on products failed, the first with RuntimeError: no such "
        f"luck; mend the cause, then: optim-bench retry {folder / 'out'}"
    )
    # Two were enough to see it, and AdamW's are there.
    records = Store(folder / "out").records().values()
    assert sum(record.status == "failed" for record in records) == 2
    assert sum(record.status == "ok" for record in records) > 6


def test_a_bad_task_stops_the_comparison_at_its_first_run(command, folder):
    path = folder / "products.py"
    path.write_text(TASK.replace('{"loss": F', '{"lost": F'))
    status, _, err = command("products.py:task", "--tier", "smoke", "--executor", "inline")
    assert status == 1
    assert err == (
        "error: products: evaluate(…, 'val') returned 'lost', which lacks the metric 'loss'; "
        "return it, or say what is judged: judged=...\n"
    )
    (out,) = (folder / DEFAULT_OUTPUT).iterdir()
    assert list(Store(out).records()) == []


@pytest.mark.slow
def test_batches_that_depend_on_who_asks_are_refused(folder):
    path = folder / "products.py"
    seen = "seen = []\n\ndef batches(seed):\n    seen.append(1)\n    seed += len(seen) // 9\n"
    path.write_text(TASK.replace("def batches(seed):\n", seen))
    with pytest.raises(BenchError) as caught:
        compare(*OWN, **SHORT, output=folder / "out")
    assert re.fullmatch(
        r"products: \S+ and \S+ did not start seed \d+ from the same batches, so they cannot be "
        r"compared in pairs; let the task draw them from the seed alone",
        str(caught.value),
    )


@pytest.mark.slow
def test_accuracy_is_judged_upwards_and_said_so(folder):
    path = folder / "products.py"
    text = TASK.replace('{"loss": F', '{"score": 1 / F').replace(
        "steps=20", 'steps=20, judged="score", larger_is_better=True, splits=("val",)'
    )
    path.write_text(text)
    found = compare("products.py:task", ["adamw,weight_decay=50"], **SHORT, output=folder / "out")
    (verdict,) = found.verdicts
    assert verdict.ratio > 1
    assert re.search(r"validation score [\d.]+ % lower", verdict.sentence)
    losing, winning = found.records()
    assert losing["mean"] < winning["mean"]
    assert losing["judged"] == "validation score"
    assert "products holds back no test examples" in found._repr_html_()
    assert run_app(build_app(), ["validate", str(folder / "out" / "results.json")]) == 0


@pytest.mark.slow
def test_whatever_is_named_is_a_test_and_what_is_added_later_is_not(command, folder):
    options = ["--tier", "smoke", "--seeds", "7", "--executor", "inline", "--output", "out"]
    status, _, err = command(
        "products.py:task", "--optimizer", "sgd", "--optimizer", "adamw,b1=0.5", *options
    )
    assert status == 0, err
    late = ["--add", "products.py:mine", "--output", "out", "--executor", "inline"]
    before = json.loads(Path("out/results.json").read_text())
    assert [c["tests"] for c in before["comparisons"]] == [2, 2]
    status, out, err = command(
        "--add", "products.py:mine", "--output", "out", "--executor", "inline"
    )
    assert status == 0, err
    after = json.loads(Path("out/results.json").read_text())
    assert after["comparisons"][:2] == before["comparisons"]
    added = after["comparisons"][2]
    assert (added["label"], added["verdict"]) == ("products.py:mine", "exploratory")
    assert "entered after the first results (p = " in added["reason"]
    assert "after Holm over 3 tests, with the family that it joined" in added["reason"]
    assert "Entered after the first results, and therefore exploratory: products/torch/" in out
    assert run_app(build_app(), ["validate", "out/results.json"]) == 0
    # One that was interrupted goes on when it is repeated, and what was there is refused.
    (lost, *_) = [
        path
        for path in Path("out").rglob("*.json")
        if '"optimizer": "products.py:mine"' in path.read_text() and path.parent != Path("out")
    ]
    lost.unlink()
    status, _, err = command(*late)
    assert (status, lost.is_file()) == (0, True), err
    assert json.loads(Path("out/results.json").read_text())["comparisons"] == after["comparisons"]
    status, _, err = command("--add", "sgd", "--output", "out", "--executor", "inline")
    assert (status, "sgd: in this comparison already" in err) == (2, True)
    status, _, err = command("--add", "lion", "--executor", "inline")
    assert (status, "--add takes what is in --output as it is" in err) == (2, True)


@pytest.mark.slow
def test_a_budget_is_planned_measured_and_resumed(command, folder):
    options = ["products.py:task", "--optimizer", "products.py:mine", "--executor", "inline"]
    status, out, err = command(*options, "--budget", "700steps")
    assert status == 0, err
    assert re.search(
        r"^Plan: products.py:mine, adamw on products; at most 5 learning rates", out, re.M
    )
    assert re.search(r"^Shows: 8 paired seeds and 1 test find a change of 1\.2 ", out, re.M)
    plan = next(Path(DEFAULT_OUTPUT).glob("*/plan.json"))
    status, out, err = command(*options, "--budget", "700steps")
    assert status == 0, err
    assert "Plan:" not in out
    assert re.search(r"^(\d+) of \1 runs, 0 s so far", out, re.M)
    assert list(Path(DEFAULT_OUTPUT).glob("*/plan.json")) == [plan]


def test_a_dry_run_prints_the_plan_and_leaves_nothing(command, folder):
    before = sorted(folder.iterdir())
    options = ["products.py:task", "--optimizer", "products.py:mine", "--executor", "inline"]
    status, out, err = command(*options, "--dry-run", "--seeds", "3")
    assert (status, err) == (0, "")
    assert [line.partition(":")[0] for line in out.splitlines()] == [
        "Plan", "Steps per run", "Time", "Shows",
    ]  # fmt: skip
    assert "Shows: nothing that could be called a difference: 3 seeds cannot reach the level" in out
    assert [p for p in sorted(folder.iterdir()) if p.name != "__pycache__"] == before


def test_a_forecast_from_python_says_the_same(folder):
    found = forecast(*OWN, budget="10min", executor="inline")
    assert found.plan.budget == DESIGNS[0]
    assert found.seconds < 600
    assert found.lines[0].startswith("Plan: products.py:mine, adamw on products; at most 9 ")
    assert not Path(DEFAULT_OUTPUT).exists()


def test_an_optimizer_that_cannot_start_ends_a_budget_before_it_is_spent(command, folder):
    options = ["products.py:task", "--optimizer", "products.py:broken", "--executor", "inline"]
    status, _, err = command(*options, "--budget", "1min")
    assert status == 1
    assert err.startswith("error: products.py:broken on products fails in its first run: Runtime")


def costs_of(plan, step):
    return {cell.name: Cost(2.0, 0.1, step, 0.05) for cell in plan.cells}


@pytest.mark.parametrize(
    ("budget", "step", "design", "share"),
    [
        ("10h", 0.001, 0, 1.0),
        ("20min", 0.05, 1, 1.0),
        ("10min", 0.05, 4, 1.0),
        ("300s", 0.05, 5, 1.0),
        ("200s", 0.05, 4, 0.5),
    ],
)
def test_the_largest_design_that_fits_is_taken(budget, step, design, share):
    plan = build_plan(Request(workloads=["digits-cnn"], optimizers=["stac"], frameworks=["torch"]))
    allowance = Allowance.parse(budget)
    found = choose(plan, allowance, costs_of(plan, step), 2, lambda cell, steps: 20, None)
    assert found == (DESIGNS[design], share)
    assert found[0].fresh_seeds >= fewest_seeds(1)


def test_a_budget_that_holds_no_verdict_is_refused_with_what_one_takes():
    plan = build_plan(Request(workloads=["digits-cnn"], optimizers=["stac"], frameworks=["torch"]))
    with pytest.raises(UsageError) as caught:
        choose(plan, Allowance.parse("30s"), costs_of(plan, 1.0), 2, lambda c, s: 20, None)
    assert re.fullmatch(
        r"the budget is too small: 6 fresh seeds, which a verdict needs here, with 3 learning "
        r"rates at a quarter of the horizon take about \d+ min; allow more, lower the task's "
        r"steps, or name fewer optimizers",
        str(caught.value),
    )


def test_the_runs_of_a_design_count_one_more_rate_and_the_defaults():
    assert [runs_of(design) for design in (DESIGNS[1], DESIGNS[-1])] == [4 + 3 + 3 + 20, 4 + 1]


SCRIPT = """
import torch
from optim_bench import compare

def mine(model, learning_rate):
    return torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=0.9)

result = compare("products.py:task", [mine], tier="smoke", seeds=6)
print(result)
print(result.verdicts[0])
"""


@pytest.mark.slow
def test_ten_lines_of_python_give_a_verdict_outside_the_checkout(folder):
    (folder / "ten.py").write_text(SCRIPT)
    assert len(SCRIPT.strip().splitlines()) <= 10
    done = subprocess.run(
        [sys.executable, "ten.py"], capture_output=True, text=True, check=False, cwd=folder,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"products +mine .* baseline", " ".join(done.stdout.split()))


@pytest.mark.slow
def test_the_command_gives_a_verdict_from_a_file_in_worker_processes(folder):
    arguments = ["run", "products.py:task", "--optimizer", "products.py:mine", "--tier", "smoke"]
    command = [Path(sys.executable).with_name("optim-bench"), *arguments, "--seeds", "6"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "products.py:mine against equally tuned AdamW in PyTorch: " in done.stdout
