"""A run is a function of its spec, and its record says truly what happened."""

import dataclasses
import importlib
import importlib.util
import math
import subprocess
import sys

import numpy as np
import pytest
from optim_bench.errors import UsageError
from optim_bench.executors.train import MissingExtraError, train
from optim_bench.executors.train._schedule import multipliers
from optim_bench.records import SCHEDULES, RunSpec
from optim_bench.tasks import TaskError
from optim_bench.tasks.built_in import WORKLOADS

FRAMEWORKS = ("jax", "torch")
frameworks = pytest.mark.parametrize("framework", FRAMEWORKS)


def make_spec(framework: str, workload: str = "digits-cnn", **changes) -> RunSpec:
    spec = RunSpec(
        workload=workload,
        workload_version=1,
        framework=framework,
        optimizer="adamw",
        hyperparameters={"learning_rate": 3e-3},
        seed=0,
        steps=40,
        schedule="cosine",
    )
    return dataclasses.replace(spec, **changes)


@frameworks
@pytest.mark.parametrize("workload", ["digits-cnn", "diamonds-mlp"])
def test_same_spec_gives_bit_identical_metrics(framework, workload):
    first, again = (train(make_spec(framework, workload)) for _ in range(2))

    assert first.metrics == again.metrics
    assert first.curve == again.curve


@pytest.mark.slow
@frameworks
def test_a_fresh_process_gives_the_same_numbers(framework):
    spec = make_spec(framework, steps=25)
    code = (
        "from optim_bench.records import RunSpec\nfrom optim_bench.executors.train import train\n"
        f"print(repr(dict(train(RunSpec(**{spec.to_json()!r})).metrics)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    assert result.stdout.strip().splitlines()[-1] == repr(dict(train(spec).metrics))


@frameworks
def test_seed_and_learning_rate_change_the_numbers(framework):
    base = train(make_spec(framework)).metrics

    assert train(make_spec(framework, seed=1)).metrics != base
    assert train(make_spec(framework, hyperparameters={"learning_rate": 1e-3})).metrics != base
    assert train(make_spec(framework, schedule="constant")).metrics != base


@frameworks
def test_adamw_learns_the_digits(framework):
    record = train(make_spec(framework, steps=150))

    assert record.status == "ok"
    assert record.metrics["test_accuracy"] > 0.9
    assert record.metrics["train_loss"] < 0.2
    assert record.curve["step"] == WORKLOADS["digits-cnn"].evaluation_steps(150)
    assert record.curve["val_loss"][-1] == record.metrics["val_loss"]
    assert record.curve["val_loss"][0] > record.curve["val_loss"][-1]


@frameworks
def test_divergence_has_a_status_and_no_numbers(framework):
    record = train(make_spec(framework, hyperparameters={"learning_rate": 1e30}))

    assert record.status == "diverged"
    assert set(record.metrics) == {
        "train_loss",
        "val_loss",
        "test_loss",
        "val_accuracy",
        "test_accuracy",
    }
    assert all(value is None for value in record.metrics.values())
    assert record.error is None
    assert record.curve["train_loss"][-1] is None
    assert not any(
        isinstance(value, float) and math.isnan(value)
        for points in record.curve.values()
        for value in points
    )


# Entries of state per parameter and the bytes beside them: optax counts steps in one int32, torch
# in one float32 per tensor (digits-cnn has eight).
@pytest.mark.parametrize(("framework", "beside"), [("jax", 4), ("torch", 4 * 8)])
def test_sizes_are_exact(framework, beside):
    record = train(make_spec(framework, steps=20))

    assert record.parameters == 38_282
    assert record.parameter_bytes == 4 * 38_282
    assert record.state_bytes == 2 * 4 * 38_282 + beside


@frameworks
def test_record_tells_times_and_versions(framework):
    record = train(make_spec(framework))

    assert set(record.seconds) == {"total", "first_step", "loop", "evaluation"}
    assert 0 < record.seconds["loop"] < record.seconds["total"]
    assert {"python", "numpy", framework, "machine", "device"} <= set(record.environment)


def test_progress_is_told_after_every_evaluation():
    seen = []
    train(make_spec("torch"), progress=lambda done, steps: seen.append((done, steps)))

    assert seen == [(step, 40) for step in WORKLOADS["digits-cnn"].evaluation_steps(40)]


@pytest.mark.slow
def test_jax_compiles_once_for_all_learning_rates_and_seeds():
    backend = importlib.import_module("optim_bench.executors.train._jax")
    train(make_spec("jax"))
    program = next(reversed(backend._PROGRAMS.values()))
    train(make_spec("jax", seed=1, hyperparameters={"learning_rate": 1e-2}))
    train(make_spec("jax", seed=2, hyperparameters={"learning_rate": 3e-2}, steps=33))

    assert next(reversed(backend._PROGRAMS.values())) is program
    assert program.step._cache_size() == 1

    train(make_spec("jax", hyperparameters={"learning_rate": 1e-2, "b1": 0.5}))
    assert next(reversed(backend._PROGRAMS.values())) is not program


def test_torch_runs_on_one_thread_and_gives_the_others_back():
    import torch

    seen = []
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        train(
            make_spec("torch", steps=20), progress=lambda *_: seen.append(torch.get_num_threads())
        )
        assert set(seen) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@frameworks
def test_an_optimizer_that_raises_is_a_failed_run(framework, tmp_path, monkeypatch):
    (tmp_path / "broken_optimizer.py").write_text(
        "def factory(*args, **kwargs):\n    raise RuntimeError('no such\\nluck')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    record = train(make_spec(framework, optimizer="broken_optimizer:factory"))

    assert record.status == "failed"
    assert record.error == "RuntimeError: no such luck"
    assert record.metrics["test_loss"] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workload": "mnist"}, "unknown workload 'mnist'; did you mean 'mnist-cnn'?"),
        ({"workload_version": 99}, "digits-cnn is at version 1, the spec asks for 99"),
        ({"optimizer": "adamv"}, "no torch optimizer named 'adamv'; did you mean adamw?"),
        (
            {"hyperparameters": {"learning_rate": -1.0}},
            r"torch/adamw: learning_rate is -1\.0; it has to lie in \(0, inf\)",
        ),
        (
            {"hyperparameters": {"learning_rate": 1.0, "beta": 0.5}},
            "torch/adamw: no hyperparameter named 'beta'; it takes learning_rate, b1",
        ),
    ],
)
def test_bad_specs_are_refused_before_anything_runs(changes, message):
    spec = dataclasses.replace(make_spec("torch"), **changes)
    with pytest.raises((ValueError, UsageError), match=message):
        train(spec)


@frameworks
def test_a_missing_extra_names_its_remedy(framework, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        MissingExtraError,
        match=rf"^{framework} runs need {framework}, which is not installed: "
        rf"pip install 'optim-bench\[{framework}\]'$",
    ):
        train(make_spec(framework))


def test_cosine_schedule_follows_its_formula():
    steps, warmup = 200, 10
    rates = multipliers("cosine", steps)

    assert len(rates) == steps
    assert rates[:warmup] == pytest.approx([(t + 1) / warmup for t in range(warmup)])
    assert rates[warmup] == 1.0
    expected = [0.5 * (1 + np.cos(np.pi * (t - warmup) / (steps - warmup))) for t in (57, 199)]
    assert [rates[57], rates[199]] == pytest.approx(expected)


@pytest.mark.parametrize("steps", [1, 2, 3, 19])
def test_short_schedules_have_one_rate_per_step(steps):
    assert len(multipliers("cosine", steps)) == steps
    assert multipliers("constant", steps) == [1.0] * steps


def test_every_schedule_warms_up_and_ends_as_its_formula_says():
    steps, warmup, decay = 200, 10, 40
    rest = range(warmup, steps)
    ends = {
        "linear": [1 - (t - warmup) / (steps - warmup) for t in rest],
        "warmup": [1.0 for t in rest],
        "wsd": [min(1.0, (steps - t) / decay) for t in rest],
    }
    for schedule, end in ends.items():
        rates = multipliers(schedule, steps)
        assert rates[:warmup] == pytest.approx([(t + 1) / warmup for t in range(warmup)])
        assert rates[warmup:] == pytest.approx(end), schedule
    assert set(SCHEDULES) == {"cosine", "constant", *ends}


def test_a_schedule_of_the_users_is_a_function_of_the_step():
    assert multipliers(lambda step, steps: step / steps, 4) == [0.0, 0.25, 0.5, 0.75]
    with pytest.raises(TaskError, match="schedule returned nan at step 0; it has to be a finite"):
        multipliers(lambda step, steps: math.nan, 4)


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="schedule is 'step'; it has to be one of cosine, consta"):
        multipliers("step", 3)
