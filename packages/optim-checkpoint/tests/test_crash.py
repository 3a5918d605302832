"""SIGKILL at every call of a save, and at random times: nothing acknowledged is ever lost."""

import random
import shutil
import signal

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


def prepare(folder, before, make_document, *, incremental):
    for step in before:
        commit(folder, make_document(step), Options(incremental=incremental))


def assert_nothing_lost(folder, before, request, code, load, check):
    """After a crash the newest readable state is the last acknowledged one or the one in flight."""
    step = request["step"]
    allowed = {step} if code == 0 else {step, before[-1]} if before else {step, None}
    try:
        found = load(folder)
    except oc.CheckpointNotFoundError:
        assert None in allowed
    else:
        assert found.skipped == ()
        assert found.step in allowed
        check(found.value, found.step)


def kill_everywhere(worker, memory_path, scenario, when, make_document, load, check):
    before, request = SCENARIOS[scenario]
    base = memory_path / "base"
    prepare(base, before, make_document, incremental=request.get("incremental", False))
    for at in range(1, 500):
        folder = memory_path / "run"
        if before:
            shutil.copytree(base, folder)
        code = worker.ask(root=str(folder), at=at, when=when, **request)
        assert code in (0, KILLED)
        assert_nothing_lost(folder, before, request, code, load, check)
        if code == KILLED:
            commit(folder, make_document(9), Options(keep=1))
            assert sorted(path.name for path in folder.iterdir()) == [".lock", "step-00000009"]
        shutil.rmtree(folder)
        if code == 0:
            return at - 1
    raise AssertionError("the save never ended")


# What a killed process leaves does not depend on its Python: one scenario is enough on each.
EVERYWHERE = ("next step with retention", "incremental")


@pytest.mark.parametrize("when", ["before", "after", "middle"])
@pytest.mark.parametrize(
    "scenario",
    [
        pytest.param(name, marks=() if name in EVERYWHERE else pytest.mark.slow)
        for name in SCENARIOS
    ],
)
def test_a_kill_at_every_call_loses_nothing(
    worker, memory_path, scenario, when, make_document, load, check, tally
):
    kills = kill_everywhere(worker, memory_path, scenario, when, make_document, load, check)
    assert kills > 20
    tally("SIGKILL before, after or in the middle of a file operation", trials=kills)


def kill_at_random_times(
    worker, folder, trials, seed, make_document, load, check, *, incremental=False
):
    size = 300_000
    rng = random.Random(seed)
    commit(folder, make_document(1, size))
    acknowledged, kills = 1, 0
    for step in range(2, trials + 2):
        code = worker.ask(
            root=str(folder),
            step=step,
            size=size,
            keep=2,
            incremental=incremental,
            delay=rng.uniform(0, 0.03),
        )
        found = load(folder)
        assert found.skipped == ()
        if code == 0:
            acknowledged = step
        else:
            assert code == KILLED
            kills += 1
        assert found.step in {acknowledged, step}
        check(found.value, found.step, size)
        acknowledged = found.step
    return kills


@pytest.mark.parametrize("incremental", [False, True])
def test_kills_at_random_times_lose_nothing(
    worker, memory_path, make_document, load, check, incremental
):
    trial = (worker, memory_path, 30, 0, make_document, load, check)
    assert kill_at_random_times(*trial, incremental=incremental) > 5


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(1, 6))
def test_hundreds_of_kills_at_random_times(
    worker, memory_path, seed, make_document, load, check, tally
):
    kills = kill_at_random_times(worker, memory_path, 400, seed, make_document, load, check)
    assert kills > 100
    tally("SIGKILL at a random time", trials=kills)


@pytest.mark.parametrize("limit", [0, 1, 100, 600, 3000])
def test_a_file_size_limit_is_a_typed_error(worker, run_folder, load, check, limit):
    assert worker.ask(root=str(run_folder), step=3, fsize=limit) == 3
    found = load(run_folder)
    assert found.step == 2
    check(found.value, 2)
    assert not [path for path in run_folder.iterdir() if path.name.startswith(".tmp")]
