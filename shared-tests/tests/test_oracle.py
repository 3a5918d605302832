"""The oracle itself: doctests, refusals, golden files, and numbers worked out by hand."""

import doctest
import importlib
import pkgutil
import subprocess
import sys

import numpy as np
import optim_conformance
import pytest
from optim_conformance.golden import load, record
from optim_conformance.oracle import Oracle
from optim_conformance.rules import RULES

MODULES = [
    name
    for _, name, _ in pkgutil.walk_packages(optim_conformance.__path__, "optim_conformance.")
    if not name.endswith("__main__")
]


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name):
    result = doctest.testmod(
        importlib.import_module(name), optionflags=doctest.ELLIPSIS, extraglobs={"np": np}
    )
    assert result.failed == 0


@pytest.mark.parametrize("opt", RULES)
def test_golden_files_are_current(opt):
    """Equal to a few units: pow and sqrt may differ in the last bit between machines."""
    recorded, now = load(opt), record(opt)
    assert [r["name"] for r in recorded] == [n["name"] for n in now]
    for old, new in zip(recorded, now, strict=True):
        assert {**old, "steps": 0} == {**new, "steps": 0}
        for before, after in zip(old["steps"], new["steps"], strict=True):
            for part in ("grads", "params", "state"):
                assert before[part].keys() == after[part].keys()
                for key, value in before[part].items():
                    np.testing.assert_allclose(after[part][key], value, rtol=1e-13, err_msg=key)


def test_golden_command():
    command = [sys.executable, "-m", "optim_conformance.golden"]
    assert subprocess.run(command, capture_output=True).returncode == 0
    refused = subprocess.run([*command, "--wirte"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "unknown arguments ['--wirte']; the only one is --write" in refused.stderr


@pytest.mark.parametrize(
    ("opt", "hparams", "error", "says"),
    [
        ("sgd", {}, ValueError, "no oracle for 'sgd'"),
        ("stam", {"b3": 0.1}, TypeError, "b3"),
        ("stac", {"roles": {"w": "adamw"}, "momentum": 0.1}, TypeError, "momentum"),
        ("stac", {"roles": {"v": "sign"}}, ValueError, r"'sign' or 'adamw' for \['w'\]"),
        ("stam", {"b2": 1.0}, ValueError, "b2 is 1.0; it must be strictly between 0 and 1"),
    ],
)
def test_refusals(opt, hparams, error, says):
    with pytest.raises(error, match=says):
        Oracle(opt, hparams, {"w": np.ones(2)})


def test_stam_by_hand():
    """Two entries, one step, every number computed on paper: g = (3, -1), m = 0."""
    run = Oracle("stam", {"weight_decay": 0.0}, {"w": np.array([1.0, 1.0])})
    run.step({"w": np.array([3.0, -1.0])})
    state = run.state()
    assert state["s2/w"] == pytest.approx(0.001 * 5.0)
    assert state["tau/w"] == pytest.approx(0.01 * 2.0)
    z = 0.005 / (0.0004 + 1e-8)
    assert state["beta1/w"] == pytest.approx(0.9 * (1 - 0.2 * z / (1 + z)))
    np.testing.assert_allclose(run.params()["w"], [0.999, 1.001], rtol=1e-10)


def test_stam_corrected_by_hand():
    """The same step with corrected statistics: s2' = 5, tau' = 2, z = 5 / (4 + 0.05)."""
    run = Oracle("stam", {"statistics": "corrected"}, {"w": np.array([1.0, 1.0])})
    run.step({"w": np.array([3.0, -1.0])})
    z = 5 / 4.05
    assert run.state()["beta1/w"] == pytest.approx(0.9 * (1 - 0.2 * z / (1 + z)))


def test_stam_lite_by_hand():
    """g = (3, -1): e1' = 1, e2' = 5, var = 4, and the step is g / sqrt(5)."""
    run = Oracle("stam_lite", {"weight_decay": 0.0}, {"w": np.array([1.0, 1.0])})
    run.step({"w": np.array([3.0, -1.0])})
    z = 4 / (5 + 1e-8)
    assert run.state()["beta1/w"] == pytest.approx(0.9 * (1 - 0.2 * z / (1 + z)))
    moved = 1e-3 * np.array([3.0, -1.0]) / np.sqrt(5)
    np.testing.assert_allclose(run.params()["w"], 1.0 - moved, rtol=1e-9)


def test_stac_by_hand():
    """Two sections, two steps: the sign section steps by 0.75 lr, its momentum decides the sign."""
    hparams = {
        "roles": {"a": "sign", "z": "adamw"},
        "learning_rate": 0.1,
        "sign_lr_scale": 0.75,
        "weight_decay": 0.1,
    }
    run = Oracle("stac", hparams, {"a": np.array([1.0]), "z": np.array([1.0])})
    run.step({"a": np.array([2.0]), "z": np.array([2.0])})
    first = 1 - 0.0075 - 0.075
    np.testing.assert_allclose(run.params()["a"], first)
    np.testing.assert_allclose(run.params()["z"], 1 - 0.01 - 0.1)
    # m = 0.9 * 0.2 - 0.1 * 1 = 0.08: the sign is still that of the first gradient.
    run.step({"a": np.array([-1.0]), "z": np.array([0.0])})
    np.testing.assert_allclose(run.params()["a"], first * (1 - 0.0075) - 0.075)
    assert run.state()["mu/a"] == pytest.approx(0.08)


def test_published_threshold_caps():
    """One large entry in 1,000: s2 = 1 and tau = 0.01, so that z would be 10,000."""
    run = Oracle("stam", {"fallback_threshold": 100.0}, {"w": np.zeros(1000)})
    spike = np.zeros(1000)
    spike[0] = 1000.0
    run.step({"w": spike})
    z = 100.0
    assert run.state()["beta1/w"] == pytest.approx(0.9 * (1 - 0.2 * z / (1 + z)))


def test_nonfinite_raise_names_the_leaf():
    run = Oracle("stac", {"roles": {"w": "sign"}, "nonfinite": "raise"}, {"w": np.ones(1)})
    with pytest.raises(FloatingPointError, match=r"\['w'\]"):
        run.step({"w": np.array([np.nan])})
