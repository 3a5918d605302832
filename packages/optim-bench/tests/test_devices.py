"""Where runs go, by contract: what a worker is told and finds in its environment."""

from pathlib import Path

import pytest
from optim_bench.cli.carry_out import execution_of
from optim_bench.errors import BenchError, UsageError
from optim_bench.executors import (
    Placement,
    ProcessExecutor,
    _devices,
    _make,
    make_executor,
    visible_gpus,
)
from optim_bench.executors import train as training
from optim_bench.executors.machine import driver, processor
from optim_bench.executors.train import train
from optim_bench.protocol.catalog import Request
from optim_bench.records import RunSpec

TELLING = """
import os
from fake_trainer import train as fake


def train(spec, *, data_dir=None, device="cpu"):
    record = fake(spec)
    seen = {"device": device, "visible": os.environ.get("CUDA_VISIBLE_DEVICES", "none")}
    return type(record)(**{**vars(record), "environment": seen})
"""


@pytest.fixture
def telling(trainer, tmp_path):
    (tmp_path / "modules" / "telling_trainer.py").write_text(TELLING)
    return "telling_trainer:train"


def places(executor, specs):
    try:
        for spec in specs:
            executor.submit(spec)
        records = [executor.wait() for _ in specs]
        assert {record.error for record in records} == {None}
        return [record.environment for record in records]
    finally:
        executor.close()


def test_workers_take_the_devices_in_turn_and_see_their_own_alone(telling, make_spec):
    executor = ProcessExecutor(
        telling, jobs=4, path=[str(Path.cwd())], placement=Placement("cuda", 2), gpus=["4", "7"]
    )
    # One group would go to one worker: four optimizers keep all four busy.
    names = ("stam", "stam_lite", "stac", "adamw")
    found = places(executor, [make_spec(seed, optimizer=n) for n in names for seed in range(4)])
    assert {seen["device"] for seen in found} == {"cuda"}
    assert {seen["visible"] for seen in found} == {"4", "7"}


def test_one_device_is_the_one_that_is_named(telling, make_spec):
    executor = ProcessExecutor(
        telling, jobs=1, path=[str(Path.cwd())], placement=Placement("cuda:1"), gpus=["4", "7"]
    )
    assert places(executor, [make_spec()]) == [{"device": "cuda", "visible": "7"}]


def test_without_a_device_a_trainer_need_not_know_of_any(trainer, make_spec):
    executor = ProcessExecutor(trainer, jobs=1, path=[str(Path.cwd())])
    assert places(executor, [make_spec()])[0]["threads"] == "1"


def test_in_this_process_the_device_keeps_its_number(telling, make_spec, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    executor = make_executor("inline", telling, placement=Placement("cuda:1"))
    assert places(executor, [make_spec()])[0]["device"] == "cuda:1"


def test_as_many_jobs_as_share_the_devices(monkeypatch):
    monkeypatch.setattr(_make, "visible_gpus", lambda: ["0", "1", "2"])
    assert _make.default_jobs(Placement("cuda", 2)) == 6
    assert _make.default_jobs(Placement("cuda:2")) == 1
    assert _make.default_jobs(Placement("tpu")) == 1
    assert 1 <= _make.default_jobs() <= 4


def test_the_devices_are_those_that_this_process_may_use(tmp_path, monkeypatch):
    for name in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(_devices, "_GPUS", tmp_path)
    assert visible_gpus({}) == ["0", "1"]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "3, GPU-ab"}) == ["3", "GPU-ab"]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}) == []
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "-1"}) == []
    monkeypatch.setattr(_devices, "_GPUS", tmp_path / "none")
    assert visible_gpus({}) == []


@pytest.mark.parametrize(
    ("device", "share", "message"),
    [
        ("gpu", 1, "device is 'gpu'; it has to be cpu, cuda, cuda:0 (or another number), or tpu"),
        ("cuda:", 1, "device is 'cuda:'; it has to be"),
        ("cpu", 2, "--jobs-per-device 2 is for GPUs, not for cpu; on the CPU --jobs says"),
        ("cuda", 0, "jobs per device is 0; use 1 or more"),
    ],
)
def test_a_device_that_cannot_be_meant_is_one_sentence(device, share, message):
    with pytest.raises(UsageError) as caught:
        execution_of("process", None, None, None, None, device, share)
    assert str(caught.value).startswith(message)


def test_a_device_that_is_not_there_is_one_sentence():
    with pytest.raises(BenchError, match="this machine has no CUDA device, or its driver shows"):
        Placement("cuda").environments([])
    with pytest.raises(BenchError, match=r"device is 'cuda:2', and this machine shows 2: cud"):
        Placement("cuda:2").environments(["0", "1"])


@pytest.mark.parametrize("executor", ["submitit", "ray"])
def test_a_cluster_gives_its_devices_out_itself(executor):
    with pytest.raises(
        UsageError, match=rf"--device cuda:1 is of this machine; with --executor {executor}"
    ):
        make_executor(executor, placement=Placement("cuda:1"))


def test_a_tpu_is_for_jax(tmp_path):
    from optim_bench.cli.compare import Question, prepare
    from rich.console import Console

    request = Request("smoke", ("digits-cnn",), ("stac",), ("torch",))
    execution = execution_of("process", None, None, None, None, "tpu")
    with pytest.raises(UsageError, match="--device tpu is for JAX alone"):
        prepare(Question(request, execution, output=tmp_path), Console(quiet=True))


def test_every_record_names_the_processor():
    found = training.environment("torch")
    assert (found["processor"], found["device"]) == (processor(), "cpu")
    assert "driver" not in found
    assert driver()


@pytest.mark.gpu
@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_a_run_on_a_device_learns_and_says_where_it_was(framework):
    rate = {"learning_rate": 3e-3}
    record = train(
        RunSpec("digits-cnn", 1, framework, "adamw", rate, 0, 100, "cosine"), device="cuda:0"
    )
    assert record.error is None
    assert record.metrics["test_accuracy"] > 0.9
    assert record.environment["device"] != "cpu"
    assert record.environment["driver"] != "unknown"
