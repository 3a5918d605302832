"""RESULTS.md shows what the committed results hold, and the benchmark that made them runs."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent
BENCHMARKS = PACKAGE / "benchmarks"


@pytest.fixture(scope="module")
def tables():
    return runpy.run_path(str(BENCHMARKS / "tables.py"))


def test_the_readme_shows_the_committed_results(tables):
    text = (PACKAGE / "RESULTS.md").read_text(encoding="utf-8")
    assert tables["with_tables"](text) == text, "run benchmarks/tables.py --write"


def test_the_readme_says_how_many_optimizers_of_others_resume():
    counts = json.loads((BENCHMARKS / "peers.json").read_text())["counts"]
    text = " ".join((PACKAGE / "README.md").read_text(encoding="utf-8").split())
    bitwise, refused = counts["exact"], counts["refused"]
    assert f"Of {bitwise + refused} optimizers of two other packages {bitwise} resume" in text


def test_a_missed_target_is_called_missed(tables):
    result = json.loads((BENCHMARKS / "result.json").read_text())
    result["ratios"]["load"]["readinto, new tensors"]["median"] = 0.5
    result["memory MiB"]["save"] = 100.0
    text = tables["benchmark_table"](result)
    assert "0.50x" in text
    assert "**missed** by 0.20 |" in text
    assert "**missed** by 32 MiB |" in text


def test_the_counts_are_those_that_were_promised():
    campaigns = json.loads((BENCHMARKS / "campaigns.json").read_text())["campaigns"]
    trials = {name: row["trials"] for name, row in campaigns.items()}
    assert trials["SIGKILL at a recorded system call"] >= 2000
    assert trials["flipped bit"] >= 10_000
    assert trials["hostile header"] >= 85


@pytest.mark.slow
def test_the_benchmark_runs(tmp_path):
    target = tmp_path / "result.json"
    script = BENCHMARKS / "bench_checkpoint.py"
    command = [sys.executable, "-W", "ignore", str(script), "--mib", "4", "--rounds", "2"]
    out = subprocess.run(
        [*command, "--folder", str(tmp_path), "--json", str(target)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "optim-checkpoint is" in out.stdout
    result = json.loads(target.read_text())
    assert result["ratios"]["save"]["raw write and fsync"]["median"] > 0
    assert result["ratios"]["load"]["readinto, new tensors"]["low"] > 0
    assert result["ratios"]["stall"]["share of the durable save"]["median"] > 0
    # An async save holds a copy of the state, a save does not: the measure can tell them apart.
    assert result["memory MiB"]["async save"] > 3.9
    assert result["memory MiB"]["save"] < 3.9
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.slow
def test_the_benchmark_of_incremental_saves_runs(tmp_path, tables):
    script = BENCHMARKS / "bench_incremental.py"
    command = [sys.executable, "-W", "ignore", str(script), "--mib", "8", "--rounds", "2"]
    out = subprocess.run(
        [*command, "--folder", str(tmp_path)], capture_output=True, text=True, check=True
    )
    result = json.loads(out.stdout)
    # So small a state is parted by the second save.
    first, *_, last = result["shares written"]
    assert first > 1 > 0.5 > last
    result["ratios"]["stall, later save"]["median"] = 0.25
    assert "**missed** by 0.10 |" in tables["incremental_table"](result)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_benchmark_of_many_tensors_runs(tmp_path, tables):
    script = BENCHMARKS / "bench_many.py"
    command = [sys.executable, "-W", "ignore", str(script), "--tensors", "50", "--rounds", "2"]
    out = subprocess.run(
        [*command, "--folder", str(tmp_path)], capture_output=True, text=True, check=True
    )
    result = json.loads(out.stdout)
    assert result["seconds"]["cpu"]["restore"] > 0
    result["ratios"]["cpu"]["save"]["median"] = 2.5
    assert "**missed** by 0.50 |" in tables["many_table"](result)
    assert list(tmp_path.iterdir()) == []
