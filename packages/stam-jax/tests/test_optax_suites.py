"""The common tests of the installed optax, run on our optimizers: all pass, and none is skipped."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RUNNER = Path(__file__).with_name("run_optax_suite.py")

# Tests per suite for two optimizers, the fewest of any supported optax.
EXPECTED = {"alias": 30, "contrib": 22, "sharding": 6, "float64": 2}
# Old releases of optax ship no sharding suite; the others are in every supported one.
SUITES = [
    suite
    for suite in EXPECTED
    if suite != "sharding" or importlib.util.find_spec("optax._src.sharding_test")
]


@pytest.mark.slow
@pytest.mark.parametrize("suite", SUITES)
def test_every_optax_test_passes_and_none_is_skipped(suite):
    # A process of its own: the suites set the number of devices and switch 64-bit mode on and off.
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [sys.executable, str(RUNNER), suite],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    report = json.loads(result.stdout.splitlines()[-1])
    assert report["failed"] == [], result.stderr[-4000:]
    assert report["skipped"] == []
    assert report["run"] >= EXPECTED[suite], report
