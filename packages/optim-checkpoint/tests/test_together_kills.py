"""SIGKILL before and after every call of each of two processes that save together."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

# Some hundred pairs of processes. On every Python, test_together.py makes the same calls fail.
pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).with_name("together_worker.py")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    # A killed process loses nothing that it wrote, synced or not: memory is as good as a disk here.
    memory = Path("/dev/shm")
    where = memory if os.access(memory, os.W_OK) else tmp_path_factory.mktemp("kills")
    folder = tempfile.mkdtemp(dir=where)
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", str(SCRIPT), folder],
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )
    finally:
        shutil.rmtree(folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_every_call_of_both_processes_was_a_point_to_die_at(found):
    first, second = found["calls"]
    assert first >= 17
    assert second >= 6
    assert len(found["trials"]) == 2 * (first + second)
    for trial in found["trials"]:
        assert trial["ended"][trial["victim"]] == -9


def test_nothing_is_lost_and_nothing_is_torn(found):
    for trial in found["trials"]:
        assert trial["steps"] in ([1], [1, 2]), trial
        assert all(trial["sound"]), trial
        # The other process never takes a step for saved that is not there.
        survivor = trial["ended"][1 - trial["victim"]]
        assert survivor == 3 or trial["steps"] == [1, 2], trial
    # Only the first process commits: the death of the second always stops the save before.
    assert all(t["steps"] == [1] for t in found["trials"] if t["victim"] == 1)
    assert any(t["steps"] == [1, 2] for t in found["trials"] if t["victim"] == 0)


def test_the_next_save_works_and_sweeps(found):
    for trial in found["trials"]:
        assert trial["after"], trial
        assert [name for name in trial["left"] if not name.startswith("step-")] == [".lock"]
