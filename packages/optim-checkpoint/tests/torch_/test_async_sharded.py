"""Shards saved in the background: SIGKILL of any process at any point, and one that fails alone."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("async_worker.py")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not torch.distributed.is_available(), reason="this torch is built without distributed"
    ),
]
NIGHTLY = [(2, "all"), (3, "60"), (4, "60"), (8, "60")]
RUNS = [(2, "6"), *(pytest.param(run, marks=pytest.mark.nightly) for run in NIGHTLY)]


@pytest.fixture(scope="module", params=RUNS, ids=str)
def found(request, tmp_path_factory):
    # A killed process loses nothing that it wrote, synced or not: memory is as good as a disk here.
    memory = Path("/dev/shm")
    where = memory if os.access(memory, os.W_OK) else tmp_path_factory.mktemp("kills")
    folder = tempfile.mkdtemp(dir=where)
    world, share = request.param
    try:
        done = subprocess.run(
            [sys.executable, str(SCRIPT), folder, str(world), share],
            capture_output=True,
            text=True,
            timeout=550,
        )
    finally:
        shutil.rmtree(folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_every_process_has_points_to_die_at(found):
    # Twice six messages and one file of a part at the least, each before and after.
    assert all(count >= 24 for count in found["calls"])
    assert len(found["trials"]) >= 6
    for trial in found["trials"]:
        assert trial["ended"][trial["victim"]] == -9, trial


def test_nothing_is_torn_and_no_survivor_takes_for_saved_what_is_not(found):
    for trial in found["trials"]:
        assert trial["steps"] in ([1], [1, 2]), trial
        assert all(trial["sound"]), trial
        survivors = [code for code in trial["ended"] if code != -9]
        # None waits until the alarm of the test: who cannot reach one that is gone ends the group.
        assert all(code == 3 or trial["steps"] == [1, 2] for code in survivors), trial
        assert all(code == 3 or code > 100 for code in survivors), trial


def test_the_next_save_sweeps(found):
    assert all(trial["left"] == [".lock"] for trial in found["trials"])
