"""Twenty steps after a restore in a fresh process are bitwise those of the uninterrupted run."""

import importlib.util
import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("resume_worker.py")


def load_worker():
    spec = importlib.util.spec_from_file_location("resume_worker", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


worker = load_worker()
CASES = worker.CASES


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        trained = worker.run("train", folder)
    torch.set_num_threads(threads)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return trained, json.loads(done.stdout)


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(runs, case):
    uninterrupted, resumed = (run[case] for run in runs)
    assert resumed["start"] == uninterrupted["start"]
    assert resumed["end"] == uninterrupted["end"]
    assert uninterrupted["end"]["model"] != uninterrupted["start"]["model"]


def test_every_optimizer_of_torch_has_a_case():
    classes = {
        name
        for name, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer)
    } - {"Optimizer"}
    assert classes <= CASES.keys()
