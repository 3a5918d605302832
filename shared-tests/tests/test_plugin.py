"""The plugin costs other suites nothing, and its profiles can be chosen."""

import subprocess
import sys
from pathlib import Path

import pytest

PROPERTY = """
from hypothesis import given, settings, strategies as st

@given(st.integers())
def test_profile(x):
    assert settings().max_examples == {examples}
    assert settings().derandomize is {derandomize}
"""


def run(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
    )


def test_plugin_imports_nothing_heavy(tmp_path, monkeypatch):
    # Other plugins of the environment may import what they like; hypothesis' own is off with them.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    (tmp_path / "test_other.py").write_text(
        "import sys\n"
        "def test_other():\n"
        "    heavy = {'numpy', 'hypothesis', 'ml_dtypes', 'jax', 'torch'} & set(sys.modules)\n"
        "    assert not heavy\n"
        "    assert 'optim_conformance.plugin' in sys.modules\n"
    )
    done = run(tmp_path, "-q", "-p", "optim_conformance.plugin")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("build_machine", [False, True])
@pytest.mark.parametrize(
    ("option", "variable", "profile", "examples"),
    [
        (None, None, "ci", 100),
        ("nightly", None, "nightly", 2000),
        (None, "nightly", "nightly", 2000),
    ],
)
def test_profiles(tmp_path, monkeypatch, option, variable, profile, examples, build_machine):
    # hypothesis looks for the variables of a dozen services; this one is common to them.
    monkeypatch.setenv("CI", "true") if build_machine else monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("HYPOTHESIS_PROFILE", raising=False)
    if variable:
        monkeypatch.setenv("HYPOTHESIS_PROFILE", variable)
    (tmp_path / "test_property.py").write_text(
        "import optim_conformance.profiles\n"
        "optim_conformance.profiles.activate()\n"
        + PROPERTY.format(examples=examples, derandomize=profile == "ci")
    )
    done = run(tmp_path, *([f"--hypothesis-profile={option}"] if option else []))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"hypothesis profile {profile}" in done.stdout


def test_failures_show_their_values(tmp_path):
    (tmp_path / "test_rewritten.py").write_text(
        "from optim_conformance import OptimizerConformance\n"
        "from optim_conformance.numpy_adapter import NumpyAdapter\n"
        "class Strange(NumpyAdapter):\n"
        "    capabilities = frozenset({'teleport'})\n"
        "class TestStrange(OptimizerConformance):\n"
        "    adapter = Strange()\n"
    )
    done = run(tmp_path, "-k", "declares")
    assert done.returncode == 1
    assert "assert not ['teleport']" in done.stdout


def test_the_adapter_of_the_readme_passes(tmp_path):
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    block = readme.split("```python\n")[1].split("```")[0]
    (tmp_path / "test_readme.py").write_text(block)
    done = run(tmp_path, "-q", "-W", "error")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
