"""The command line: what it does, and the one line a user gets for bad input."""

import importlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from optim_bench.cli import build_app, run_app
from optim_bench.records import RunSpec
from optim_bench.results.store import Store

SMOKE = ["run", "--tier", "smoke", "--executor", "inline"]
ONE_CELL = ["--workload", "digits-cnn", "--framework", "jax", "--optimizer", "stam"]


@pytest.fixture
def bench(trainer, capfd):
    """Run the command line with the fake trainer; gives (exit status, stdout, stderr)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        status = run_app(build_app(trainer), [str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return status, out, err

    return run


@pytest.fixture(scope="session")
def finished_once(tmp_path_factory, trainer_source) -> Path:
    """A finished comparison; tests get copies."""
    root = tmp_path_factory.mktemp("finished")
    (root / "finished_trainer.py").write_text(trainer_source)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root)
        arguments = [*SMOKE, *ONE_CELL, "--output", str(root / "out")]
        assert run_app(build_app("finished_trainer:train"), arguments) == 0
    return root / "out"


@pytest.fixture
def finished(finished_once, tmp_path) -> Path:
    return Path(shutil.copytree(finished_once, tmp_path / "out"))


@pytest.fixture
def absent(monkeypatch):
    """Make modules look as if they were not installed."""
    find = importlib.util.find_spec

    def hide(*names: str) -> None:
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda name, *rest: None if name in names else find(name, *rest),
        )

    return hide


def test_no_framework_is_imported():
    code = (
        "import sys; from optim_bench.cli import build_app, run_app\n"
        "for arguments in (['--help'], ['run', '--help'], ['list']):\n"
        "    status = run_app(build_app(), arguments)\n"
        "    print('LOADED', sorted({'jax', 'torch', 'optax'} & set(sys.modules)), status)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = [line for line in done.stdout.splitlines() if line.startswith("LOADED")]
    assert found == ["LOADED [] 0"] * 3


def test_scipy_is_loaded_by_what_computes_alone():
    code = "import sys, optim_bench.cli; print('scipy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.slow
def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "optim_bench", "--help"], capture_output=True, text=True, check=True
    )
    assert "Compare optimizers" in done.stdout


def test_a_run_ends_with_verdicts_and_the_path_of_the_report(bench, tmp_path):
    folder = tmp_path / "out"
    status, out, err = bench(*SMOKE, "--seeds", "6", *ONE_CELL, "--output", folder)
    assert (status, err) == (0, "")
    assert re.search(r"digits-cnn +STAM.* better", out)
    assert "STAM (published statistics) against equally tuned AdamW in JAX: better" in out
    assert "says nothing" in out or "far too short" in out
    assert out.rstrip().endswith(f"Report: {folder / 'report.html'}")
    (made,) = Store(folder).history()
    assert (made["runs"], made["executor"], made["device"]) == (18, "inline", "cpu")
    assert f"Made {made['started']}" in (folder / "report.html").read_text()
    names = {
        ".lock",
        "plan.json",
        "history.json",
        "results.json",
        "report.html",
        "summary.md",
        "runs",
        "figures",
    }
    assert {path.name for path in folder.iterdir()} == names
    assert {p.name for p in (folder / "figures").iterdir()} >= {"forest-jax.svg", "forest-jax.png"}


def test_without_a_terminal_progress_is_plain_lines(bench, tmp_path):
    _, out, _ = bench(*SMOKE, *ONE_CELL, "--output", tmp_path / "out")
    lines = [line for line in out.splitlines() if "runs," in line]
    assert lines[0].startswith("0 of 10 runs, 0 s so far")
    assert lines[-1].startswith("10 of 10 runs")
    assert len(lines) <= 4
    assert "\x1b" not in out


def test_a_second_run_repeats_nothing(bench, finished):
    before = {path: path.stat().st_mtime_ns for path in finished.glob("runs/*.json")}
    status, out, _ = bench(*SMOKE, *ONE_CELL, "--output", finished)
    assert status == 0
    assert "10 of 10 runs, 0 s so far" in out
    assert {path: path.stat().st_mtime_ns for path in finished.glob("runs/*.json")} == before


def test_a_rebuilt_report_has_the_same_bytes(bench, finished):
    def contents():
        return {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}

    before = contents()
    for path in before:
        if path.parent.name != "runs" and path.name not in ("plan.json", ".lock", "history.json"):
            path.unlink()
    assert bench("report", finished)[0] == 0
    assert contents() == before


def test_figures_of_an_earlier_plan_disappear(bench, finished):
    stale = finished / "figures" / "forest-gone.svg"
    stale.write_text("old")
    bench("report", finished)
    assert not stale.exists()


def test_a_second_run_in_the_same_folder_waits_its_turn(bench, finished):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    with Store(finished).exclusive():
        for command in ([*SMOKE, *ONE_CELL, "--output", finished], ["retry", finished]):
            status, _, err = bench(*command)
            assert status == 1
            assert err == (
                f"error: another optim-bench run is at work in {finished}; wait for it (see "
                f"optim-bench status {finished}), or choose another --output\n"
            )
        assert bench("status", finished)[0] == 0
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before
    assert bench(*SMOKE, *ONE_CELL, "--output", finished)[0] == 0


BAD_NAMES = [
    (["run", "--tier", "quik"], "unknown tier 'quik'; did you mean 'quick'? choose from"),
    (
        ["run", "--workload", "digit-cnn"],
        "unknown workload 'digit-cnn'; did you mean 'digits-cnn'?",
    ),
    (
        ["run", "--optimizer", "stamm"],
        "unknown jax or torch optimizer 'stamm'; did you mean 'stam'?",
    ),
    (
        ["run", "--optimizer", "signum", "--framework", "jax"],
        "signum is an optimizer of torch, not of jax; use --framework torch",
    ),
    (["run", "--framework", "tensorflow"], "unknown framework 'tensorflow'; choose from"),
    (["run", "--optimizer", "adamw,b1=1.5"], "adamw: b1 is 1.5; it has to lie in [0, 1)"),
    (["run", "--optimizer", "adamw,beta=0.5"], "adamw: no hyperparameter named 'beta'; it takes"),
    (["run", "--optimizer", "adamw,b1"], "'adamw,b1' has a part 'b1'; write name,hyperparameter="),
    (["run", "--optimizer", "adamw,learning_rate=-1"], "learning_rate is -1; it has to lie in (0"),
    (["run", "--optimizer", "no_module:x"], "'no_module:x' cannot be imported"),
    (["run", "--seeds", "50"], "seeds is 50; use 1 to 20"),
    (["run", "--executor", "slurm"], "unknown executor 'slurm'; choose from inline, process, ray"),
    (
        ["run", "--executor-option", "partition"],
        "--executor-option is 'partition'; write key=value",
    ),
    (
        ["run", "--executor-option", "partition=gpu"],
        "--executor process takes no --executor-option; partition belongs to submitit or ray",
    ),
    (["run", "--executor", "inline", "--jobs", "3"], "--jobs 3 needs worker processes"),
    (["run", "--data-dir", "/nowhere/at/all"], "no folder /nowhere/at/all; --data-dir is where"),
    (["show", "stak"], "unknown name 'stak'; did you mean 'stam'?"),
    (["run", "--optimizer", "adamw,b1=NaN"], "b1 is NaN; it has to be a finite number"),
    (["run", "--optimizer", "adamw,b1=-Infinity"], "b1 is -Infinity; it has to be a finite"),
    (["run", "--optimizer", "adamw,learning_rate=1e999"], "learning_rate is 1e999; it has to be a"),
    (["run", "--optimizer", f"adamw,eps=1{'0' * 400}"], "eps is 1000"),
    (["run", "--optimizer", f"adamw,eps=1{'0' * 9000}"], "eps is 1000"),
    (["run", "--optimizer", "adamw,b1=[0.9]"], "b1 is [0.9]; it has to be a number, true, false"),
    (["run", "--optimizer", "adamw,b1=0.9,b1=0.8"], "gives b1 twice; leave one of them away"),
    (
        ["run", "--optimizer", "optim_bench.optimizers._torch_factories:stac"],
        "is a plain factory, which may be for JAX or for PyTorch; say which: --framework jax or",
    ),
]


BAD_FILES = [
    (["run", "--output", "/proc/nowhere"], "cannot write to /proc/nowhere"),
    (["run", "--workload", "mnist-cnn"], "say where it lies with --data-dir"),
    (["run", "--workload", "mnist-cnn", "--data-dir", "."], "mnist-cnn: . holds no"),
    (["status", "/nowhere/at/all"], "no comparison in /nowhere/at/all; start one: optim-bench run"),
    (["report", "/nowhere/at/all"], "no comparison in /nowhere/at/all; start one: optim-bench run"),
    (["retry", "/nowhere/at/all"], "no comparison in /nowhere/at/all; start one: optim-bench run"),
    (["validate", "/nowhere/at/all"], "cannot read /nowhere/at/all (no such file or directory)"),
    (["validate", "/proc/version"], "/proc/version is no strict JSON (Expecting value"),
]


@pytest.mark.parametrize(
    ("arguments", "message", "expected"),
    [(*row, 2) for row in BAD_NAMES] + [(*row, 1) for row in BAD_FILES],
)
def test_bad_input_gets_one_line_and_its_status(
    bench, tmp_path, monkeypatch, arguments, message, expected
):
    monkeypatch.chdir(tmp_path)
    status, _, err = bench(*arguments)
    assert status == expected
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "arguments", [["run", "--seeds", "many"], ["run", "--sedes", "3"], ["runn"], ["show"]]
)
def test_bad_usage_gets_one_line_and_status_2(bench, arguments):
    status, _, err = bench(*arguments)
    assert status == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "optim-bench --help" in err


def test_a_missing_framework_is_named_with_its_extra(bench, absent, tmp_path):
    absent("torch")
    status, _, err = bench("run", "--output", tmp_path / "out")
    assert status == 1
    assert err == (
        "error: torch runs need torch, which is not installed: pip install 'optim-bench[torch]'\n"
    )
    assert not (tmp_path / "out").exists()


def test_all_that_is_missing_is_named_before_anything_starts(bench, absent, finished):
    absent("jax", "ray")
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    for command in (["run", "--framework", "jax", "--output", finished], ["retry", finished]):
        status, _, err = bench(*command, "--executor", "ray")
        assert status == 1
        assert err == (
            "error: jax runs need jax, --executor ray needs ray, which are not installed: "
            "pip install 'optim-bench[jax,ray]'\n"
        )
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_a_damaged_run_is_named_before_anything_runs(bench, finished):
    victim = sorted(finished.glob("runs/*.json"))[0]
    victim.write_text("{")
    for arguments in ([*SMOKE, *ONE_CELL, "--output", finished], ["report", finished]):
        status, _, err = bench(*arguments)
        assert status == 1
        assert f"{victim} is damaged" in err
        assert err.count("\n") == 1
    victim.unlink()
    assert bench(*SMOKE, *ONE_CELL, "--output", finished)[0] == 0


def test_failed_runs_are_reported_and_retried(trainer, bench, tmp_path):
    folder = tmp_path / "out"
    module = Path("fake_trainer.py")
    module.write_text(module.read_text() + BREAKABLE)
    Path("broken").touch()
    arguments = ["--executor", "process", "--jobs", "1"]
    run = ["run", "--tier", "smoke", *ONE_CELL, "--output", folder, *arguments]
    status, out, err = bench(*run)
    assert status == 1
    assert "incomplete" in out
    assert err.startswith("error: 1 of 10 runs failed, first digits-cnn/jax/stam with OSError: ")
    assert f"optim-bench retry {folder}" in err
    assert "1 failed" in bench("status", folder)[1]
    Path("broken").unlink()
    status, out, err = bench("retry", folder, *arguments)
    assert (status, err) == (0, "")
    assert "1 failed runs to repeat" in out
    assert "0 failed" in bench("status", folder)[1]


def test_what_retry_cannot_repeat_it_does_not_forget(bench, finished):
    victim = sorted(finished.glob("runs/*.json"))[0]
    record = json.loads(victim.read_text())
    record["spec"]["steps"] = 7
    other = RunSpec.from_json(record["spec"])
    stranger = finished / "runs" / f"{other.key()}.json"
    for path, changed in ((victim, json.loads(victim.read_text())), (stranger, record)):
        path.write_text(json.dumps(changed | {"status": "failed", "error": "no luck"}))
    before = {path: path.read_bytes() for path in finished.glob("runs/*")}
    status, _, err = bench("retry", finished, "--executor", "inline", "--jobs", "2")
    assert (status, "needs worker processes" in err) == (2, True)
    assert {path: path.read_bytes() for path in finished.glob("runs/*")} == before
    status, out, _ = bench("retry", finished, "--executor", "inline")
    assert (status, "1 failed runs to repeat" in out) == (0, True)
    # What another plan left in the folder is not this one's to repeat, or to forget.
    assert stranger.read_bytes() == before[stranger]


@pytest.mark.parametrize("command", ["status", "report"])
def test_what_a_sync_tool_left_is_named_and_left_alone(bench, finished, command):
    runs = finished / "runs"
    (first, *_) = sorted(runs.glob("*.json"))
    for name in (f"{first.stem} (conflicted copy).json", ".DS_Store", f"._{first.name}"):
        (runs / name).write_bytes(b"not ours")
    (runs / f".{first.name}.abcd").write_bytes(b"a run that was killed while it was written")
    (runs / "sync").mkdir()
    before = (finished / "results.json").read_bytes()
    status, out, err = bench(command, finished)
    assert (status, err) == (0, "")
    assert f"Note: no run, and not read: .DS_Store, ._{first.name}, {first.stem} " in " ".join(
        out.split()
    )
    assert "and 1 more" in out
    assert (finished / "results.json").read_bytes() == before
    assert (runs / ".DS_Store").exists()


def test_another_source_in_a_folder_is_refused(bench, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    trained = importlib.import_module("fake_trainer")
    monkeypatch.setitem(trained.RATIO, "my_edited:opt", 0.9)
    monkeypatch.setitem(trained.STATE, "my_edited:opt", 1)
    factory = tmp_path / "my_edited.py"
    folder = tmp_path / "out"

    def run(text: str):
        factory.write_text(text)
        sys.modules.pop("my_edited", None)
        importlib.invalidate_caches()
        names = ["--optimizer", "my_edited:opt", "--framework", "jax", "--workload", "digits-cnn"]
        return bench(*SMOKE, *names, "--output", folder)

    first = "import optax\n\ndef opt(learning_rate):\n    return optax.sgd(learning_rate)\n"
    done = run(first)
    assert done[0] == 0, done
    assert run(first)[0] == 0
    before = {path.name for path in (folder / "runs").iterdir()}
    status, _, err = run(first.replace("sgd", "adam"))
    assert status == 1
    assert err == (
        f"error: the source of my_edited:opt is not what it was when {folder / 'plan.json'} was "
        "written, and runs of both must not meet; choose another --output, or move that file away "
        "to train it anew beside the runs that are there\n"
    )
    status, _, err = bench("retry", folder)
    assert (status, err.split(";")[0]) == (
        1,
        "error: the source of my_edited:opt is not what it was when this comparison was planned",
    )
    assert bench("status", folder)[0] == 0
    (folder / "plan.json").rename(folder / "old.json")
    assert run(first.replace("sgd", "adam"))[0] == 0
    after = {path.name for path in (folder / "runs").iterdir()}
    # AdamW's runs are taken over, those of the old source are not.
    assert before < after


def test_help_keeps_what_stands_in_brackets(bench):
    status, out, _ = bench("run", "--help")
    assert status == 0
    assert "[default: the two of the main job]" in " ".join(out.split())


def test_the_version_is_told(bench):
    assert bench("--version")[:2] == (0, f"optim-bench {metadata.version('optim-bench')}\n")


@pytest.mark.slow
def test_a_module_beside_the_user_is_found(tmp_path):
    (tmp_path / "my_own.py").write_text("def opt(learning_rate):\n    raise RuntimeError('mine')\n")
    command = [Path(sys.executable).with_name("optim-bench"), "memory", "--workload", "digits-cnn"]
    command += ["--framework", "jax", "--optimizer", "my_own:opt"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.stderr == "error: 1 runs failed, first with RuntimeError: mine\n"


def test_what_the_system_refuses_is_one_line(bench, finished, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device", "/tmp/somewhere")

    monkeypatch.setattr("optim_bench.cli.carry_out.make_executor", full)
    status, _, err = bench("retry", finished)
    assert status == 1
    assert err == (
        "error: the system refuses /tmp/somewhere (no space left on device); every finished run "
        "is kept\n"
    )


BREAKABLE = """
_whole = train


def train(spec, *, data_dir=None):
    if os.path.exists("broken") and spec.optimizer == "stam" and spec.seed == 100:
        raise OSError("disk on fire")
    return _whole(spec)
"""


def test_status_counts_every_cell(bench, finished):
    status, out, _ = bench("status", finished)
    assert status == 0
    assert re.search(r"digits-cnn +JAX +stam +5 of 5 +done", out)
    assert "0 diverged, 0 failed" in out


def test_list_names_workloads_and_optimizers(bench):
    _, out, _ = bench("list")
    for name in ("digits-cnn", "diamonds-mlp", "stam_lite", "stac", "adamw"):
        assert re.search(rf"^ +{name} ", out, re.MULTILINE)


def test_show_gives_ranges_and_licences(bench):
    assert re.search(r"b1 +0\.9 by default, \[0, 1\)", bench("show", "adamw")[1])
    assert "licence of the data" in bench("show", "digits-cnn")[1]
    assert bench("show", "torch/adamw")[1].count("by default") < bench("show", "adamw")[1].count(
        "by default"
    )


def test_validate_accepts_what_run_wrote_and_refuses_a_change(bench, finished):
    path = finished / "results.json"
    for given in (path, finished):
        status, out, _ = bench("validate", given)
        assert status == 0
        assert out == f"{path} is valid, schema version 1\n"
    data = json.loads(path.read_text())
    data["comparisons"][0]["verdict"] = "great"
    path.write_text(json.dumps(data))
    status, _, err = bench("validate", path)
    assert status == 1
    assert "at comparisons.0.verdict: 'great' is not one of" in err


def test_a_readme_gets_the_tables_between_its_markers(bench, finished, tmp_path):
    readme = tmp_path / "README.md"
    begin, end = "<!-- optim-bench: begin -->", "<!-- optim-bench: end -->"
    readme.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    assert bench("report", finished, "--update-readme", readme)[0] == 0
    once = readme.read_text()
    summary = (finished / "summary.md").read_text()
    assert once == f"before\n{begin}\n{summary}{end}\nafter\n"
    bench("report", finished, "--update-readme", readme)
    assert readme.read_text() == once


def test_a_readme_without_markers_is_left_alone(bench, finished, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("nothing here\n")
    status, _, err = bench("report", finished, "--update-readme", readme)
    assert status == 1
    assert "needs the lines <!-- optim-bench: begin --> and" in err
    assert readme.read_text() == "nothing here\n"
    assert "cannot read" in bench("report", finished, "--update-readme", tmp_path / "no.md")[2]


def test_another_plan_is_refused_until_the_old_one_is_moved_away(bench, finished):
    before = {path.name for path in finished.glob("runs/*.json")}
    plan = (finished / "plan.json").read_bytes()
    other = ["--workload", "diamonds-mlp", "--framework", "jax", "--optimizer", "stam"]
    status, _, err = bench(*SMOKE, *other, "--output", finished)
    assert status == 1
    assert "registers another comparison; choose another --output, or move that file away" in err
    assert (finished / "plan.json").read_bytes() == plan
    (finished / "plan.json").rename(finished / "plan-of-before.json")
    assert bench(*SMOKE, *other, "--output", finished)[0] == 0
    assert before < {path.name for path in finished.glob("runs/*.json")}
    results = json.loads((finished / "results.json").read_text())
    assert {cell["workload"] for cell in results["cells"]} == {"diamonds-mlp"}
