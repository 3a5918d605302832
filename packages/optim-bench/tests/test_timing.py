"""Step times and state bytes, measured on real sessions."""

import json

import pytest
from optim_bench.cli import build_app, run_app
from optim_bench.errors import BenchError
from optim_bench.executors import DEFAULT_TRAINER
from optim_bench.protocol import Budget
from optim_bench.report.timing import TimingRequest, measure_times, summarize
from optim_bench.results.store import Store

PAIR = (("adamw", "adamw", {}), ("stam_lite", "stam_lite", {}))


@pytest.fixture(scope="module", params=["jax", "torch"])
def measured(request):
    names = PAIR if request.param == "jax" else (PAIR[0], ("stac", "stac", {}))
    return measure_times(TimingRequest("diamonds-mlp", request.param, names, 3, 0.01))


@pytest.mark.slow
def test_every_optimizer_and_the_copy_have_every_round(measured):
    assert len(measured["seconds"]) == 3
    assert "A/A" in measured["seconds"]
    assert all(len(rounds) == 3 for rounds in measured["seconds"].values())
    assert all(0 < second < 1 for rounds in measured["seconds"].values() for second in rounds)


@pytest.mark.slow
def test_compilation_is_apart_from_the_rounds(measured):
    assert measured["first"]["adamw"] > measured["seconds"]["adamw"][0]


@pytest.mark.slow
def test_a_summary_hides_the_copy_in_the_band(measured):
    summary = summarize(measured, "adamw")
    assert "A/A" not in summary["rows"]
    assert summary["rows"]["adamw"]["ratio"] == 1.0
    assert summary["band"][0] <= summary["band"][1]


@pytest.mark.slow
def test_an_optimizer_that_cannot_start_is_named():
    broken = (*PAIR, ("x", "no_such", {}))
    with pytest.raises(BenchError, match="timing jax on diamonds-mlp failed: ValueError: no jax"):
        measure_times(TimingRequest("diamonds-mlp", "jax", broken, 2, 0.01))


@pytest.mark.slow
def test_the_command_prints_the_band_and_writes_the_numbers(capfd, tmp_path):
    file = tmp_path / "times.json"
    arguments = ["time", "--workload", "diamonds-mlp", "--framework", "torch", "--rounds", "2"]
    assert run_app(build_app(), [*arguments, "--json", str(file)]) == 0
    assert "adamw against a copy of itself" in capfd.readouterr().out
    (found,) = json.loads(file.read_text())["times"]
    assert set(found["rows"]) == {"adamw", "stac"}


def test_memory_counts_two_moments_for_adamw_and_one_for_stam_lite(capfd):
    arguments = ["memory", "--workload", "diamonds-mlp", "--framework", "jax", "--jobs", "1"]
    assert run_app(build_app(DEFAULT_TRAINER), arguments) == 0
    rows = {
        line.split()[0]: line.split()
        for line in capfd.readouterr().out.splitlines()
        if line.strip()
    }
    assert float(rows["adamw"][-1]) == pytest.approx(2.0, abs=0.001)
    assert float(rows["stam_lite"][-1]) == pytest.approx(1.0, abs=0.01)


def test_a_comparison_s_times_land_in_its_folder_and_its_report(
    make_plan, monkeypatch, capfd, tmp_path
):
    def measure(request):
        labels = [label for label, *_ in request.optimizers]
        seconds = {label: [0.5 + i, 0.5 + i] for i, label in enumerate(labels)}
        return {
            "seconds": {**seconds, "A/A": [0.5, 0.5]},
            "first": dict.fromkeys([*labels, "A/A"], 1.0),
            "load": [0.0, 0.0],
            "machine": {"cores": 2, "processor": "a processor"},
        }

    monkeypatch.setattr("optim_bench.cli.measure.measure_times", measure)
    budget = Budget(3, 1, 2, 0, defaults=False)
    store = Store(tmp_path)
    store.open()
    store.register(make_plan({"jax": ("stam", "adamw")}, budget, workloads=("digits-cnn",)))
    assert run_app(build_app(), ["time", "--directory", str(tmp_path)]) == 0
    assert f"optim-bench report {tmp_path}" in capfd.readouterr().out.replace("\n", "")
    assert run_app(build_app(), ["report", str(tmp_path)]) == 0
    stam = json.loads((tmp_path / "results.json").read_text())["cells"][0]
    # The baseline is timed first, whatever its place in the plan.
    assert (stam["label"], stam["step_time"]["ratio"]) == ("stam", 3.0)


@pytest.mark.parametrize("command", ["time", "memory"])
def test_files_that_the_user_brings_are_looked_for_where_they_lie(capfd, tmp_path, command):
    arguments = [command, "--workload", "mnist-cnn", "--framework", "jax"]
    assert run_app(build_app(), arguments) == 1
    assert "say where it lies with --data-dir" in capfd.readouterr().err
    assert run_app(build_app(), [*arguments, "--data-dir", str(tmp_path)]) == 1
    assert f"mnist-cnn: {tmp_path} holds no train-images-idx3-ubyte" in capfd.readouterr().err
    preset = {"time": "step-speed", "memory": "state-bytes"}[command]
    assert run_app(build_app(), [command, "--preset", preset, "--data-dir", str(tmp_path)]) == 2
    assert "--preset has its own" in capfd.readouterr().err


def test_the_measuring_process_reads_the_users_files(tmp_path):
    with pytest.raises(BenchError, match=f"{tmp_path} holds no train-images-idx3-ubyte"):
        measure_times(TimingRequest("mnist-cnn", "jax", PAIR[:1], 2, 0.01, tmp_path))


def test_a_folder_and_names_exclude_each_other(capfd, tmp_path):
    arguments = ["time", "--directory", str(tmp_path), "--optimizer", "stam"]
    assert run_app(build_app(), arguments) == 2
    assert "--directory times what its plan names" in capfd.readouterr().err
