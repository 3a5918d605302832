"""SIGKILL at recorded system calls of a save, whichever code makes them.

The other crash tests stop the package's own file operations. Here strace kills the writer on its
way into the n-th call of each kind, so a call that bypassed those operations would be met too.
"""

import collections
import random
import re
import shutil
import signal
import subprocess

import optim_checkpoint as oc
import pytest
from optim_checkpoint._commit import commit
from optim_checkpoint._options import Options

KILLED = -signal.SIGKILL
SCENARIOS = {
    "first save of all": ([], {"step": 3}),
    "next step": ([1, 2], {"step": 3}),
    "next step with retention": ([1, 2], {"step": 3, "keep": 1}),
    "same step again": ([1, 2], {"step": 2, "replace": True, "keep": 1}),
    "incremental": ([1, 2], {"step": 3, "keep": 1, "incremental": True}),
    "incremental, same step again": (
        [1, 2],
        {"step": 2, "replace": True, "keep": 1, "incremental": True},
    ),
}
# At the start of a line: what is written may hold a word and a parenthesis, too.
CALL = re.compile(r"^(\w+)\(", re.MULTILINE)


@pytest.fixture(scope="module")
def strace():
    path = shutil.which("strace")
    if path is None:
        pytest.skip("strace is not installed")
    tried = subprocess.run([path, "-qq", "-o", "/dev/null", "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"strace may not trace here: {tried.stderr.strip()[-100:]}")
    return path


class Campaign:
    """Saves of one scenario and size, each killed at one call."""

    def __init__(self, worker, memory_path, scenario, size, make_document):
        self.worker, self.memory_path, self.size = worker, memory_path, size
        self.make_document = make_document
        self.before, self.request = SCENARIOS[scenario]
        self.base = memory_path / f"base {scenario} {size}"
        for step in self.before:
            options = Options(incremental=self.request.get("incremental", False))
            commit(self.base, make_document(step, size), options)

    def save(self, *options):
        """Run one save under strace; return the folder, exit code and the calls it made."""
        folder, log = self.memory_path / "run", self.memory_path / "calls"
        shutil.rmtree(folder, ignore_errors=True)
        if self.before:
            shutil.copytree(self.base, folder)
        code = self.worker.ask(
            root=str(folder),
            size=self.size,
            strace=["-o", str(log), "-e", "trace=all", *options],
            **self.request,
        )
        return folder, code, CALL.findall(log.read_text())

    def points(self):
        """Record an undisturbed save: every call of it is a point (name, n) to be killed at."""
        _, code, calls = self.save()
        assert code == 0
        # The first is the read that the writer waits in.
        counts = collections.Counter(calls[1:])
        return [(name, n) for name in sorted(counts) for n in range(1, counts[name] + 1)]

    def kill(self, point, load, check):
        """Kill at a point and see that nothing is lost; return whether the kill came."""
        name, n = point
        # The read that the writer waits in is not counted: strace attaches after its entry.
        folder, code, calls = self.save("-e", f"inject={name}:signal=KILL:when={n}")
        assert code in (0, KILLED)
        step = self.request["step"]
        # Whether the call of a killed writer was made is the kernel's affair.
        allowed = {step} if code == 0 else {step, self.before[-1] if self.before else None}
        try:
            found = load(folder)
        except oc.CheckpointNotFoundError:
            assert None in allowed
        else:
            assert found.skipped == ()
            assert found.step in allowed
            check(found.value, found.step, self.size)
        if code == KILLED:
            assert calls[-1] == name
            commit(folder, self.make_document(9), Options(keep=1))
            assert sorted(path.name for path in folder.iterdir()) == [".lock", "step-00000009"]
        return code == KILLED


# strace waits for every call: long, and the same on every Python.
@pytest.mark.slow
def test_a_kill_at_a_sample_of_system_calls_loses_nothing(
    strace, worker, memory_path, make_document, load, check
):
    rng = random.Random(0)
    kills = 0
    for scenario in SCENARIOS:
        campaign = Campaign(worker, memory_path, scenario, 300, make_document)
        points = campaign.points()
        assert {"openat", "write", "fsync", "flock"} <= {name for name, _ in points}
        kills += sum(campaign.kill(point, load, check) for point in rng.sample(points, 15))
    assert kills > 50


@pytest.mark.nightly
@pytest.mark.parametrize("size", [300, 1000, 30_000, 200_000])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_kill_at_every_system_call_loses_nothing(
    strace, worker, memory_path, make_document, load, check, tally, scenario, size
):
    campaign = Campaign(worker, memory_path, scenario, size, make_document)
    points = campaign.points()
    kills = sum(campaign.kill(point, load, check) for point in points)
    assert kills > 0.9 * len(points)
    tally("SIGKILL at a recorded system call", trials=kills, points=len(points))
