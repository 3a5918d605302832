"""Power cuts on a real ext4: a loop device, shut down at every call without its journal."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import optim_checkpoint as oc
import pytest

SCRIPT = Path(__file__).with_name("powercut_worker.py")
CUT, SAVED = 5, 0


def run(*command):
    return subprocess.run([str(part) for part in command], capture_output=True, text=True)


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """An ext4 image on which step 1 is committed, and a folder to mount copies of it."""
    tmp_path = tmp_path_factory.mktemp("powercut")
    if os.geteuid() != 0:
        pytest.skip("mounting an image needs root")
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("mkfs.ext4 is not installed")
    base, mount = tmp_path / "base.img", tmp_path / "mount"
    mount.mkdir()
    with base.open("wb") as file:
        file.truncate(8 << 20)
    made = run("mkfs.ext4", "-q", "-F", base)
    mounted = run("mount", "-o", "loop", base, mount)
    if made.returncode or mounted.returncode:
        pytest.skip(f"no loop device here: {made.stderr.strip()} {mounted.stderr.strip()}")
    done = run(sys.executable, SCRIPT, mount, 1, 9, 0)
    run("umount", mount)
    if done.returncode:
        pytest.skip(f"this kernel cannot shut ext4 down: {done.stderr.strip()[-100:]}")
    return base, mount


def assert_newest_is(folder, allowed):
    step = oc.latest_step(folder)
    assert step in allowed
    report = oc.verify(folder, step)
    raw = (report.path / "model" / "model.safetensors").read_bytes()
    expected = np.random.default_rng(step).standard_normal(5000).tobytes()
    assert raw.endswith(expected)


def cut_at(image, tmp_path, at, keep):
    base, mount = image
    trial = tmp_path / "trial.img"
    shutil.copy(base, trial)
    assert run("mount", "-o", "loop", trial, mount).returncode == 0
    done = run(sys.executable, SCRIPT, mount, 2, keep, at)
    assert run("umount", mount).returncode == 0
    assert done.returncode in (SAVED, CUT), done.stderr
    # The mount replays the journal, as the boot after a power cut does.
    assert run("mount", "-o", "loop", trial, mount).returncode == 0
    try:
        assert_newest_is(mount / "run", {2} if done.returncode == SAVED else {1, 2})
    finally:
        assert run("umount", mount).returncode == 0
    return done.returncode


# What survives is decided by the kernel and by the order of the calls, not by the Python.
@pytest.mark.slow
@pytest.mark.parametrize("at", [0, 3, 6, 9, 12, 15, 18])
def test_a_power_cut_loses_nothing_that_was_acknowledged(image, tmp_path, at):
    cut_at(image, tmp_path, at, 1)


@pytest.mark.nightly
@pytest.mark.parametrize("keep", [1, 2])
def test_a_power_cut_at_every_call(image, tmp_path, keep, tally):
    calls = 0
    while cut_at(image, tmp_path, calls + 1, keep) == CUT:
        calls += 1
    assert calls > 15
    tally("power cut on a loop-mounted ext4", trials=calls)
