"""Twenty steps after a restore in a fresh process are bitwise those of the uninterrupted run."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("resume_worker.py")


def load_cases():
    spec = importlib.util.spec_from_file_location("jax_resume_worker", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.CASES


CASES = load_cases()
# What is compared are the bits of two processes that compile alike: neither needs the fast code.
XLA_FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    results = []
    for mode in ("train", "resume"):
        done = subprocess.run(
            [sys.executable, str(SCRIPT), mode, str(folder)],
            capture_output=True,
            text=True,
            env={**os.environ, "XLA_FLAGS": XLA_FLAGS},
        )
        assert done.returncode == 0, done.stderr
        results.append(json.loads(done.stdout))
    return results


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(runs, case):
    uninterrupted, resumed = (run[case] for run in runs)
    assert resumed == uninterrupted
    assert uninterrupted["end"] != uninterrupted["start"]
