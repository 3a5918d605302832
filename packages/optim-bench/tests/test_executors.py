"""One contract for every executor, and what only the executors of one machine can do."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from optim_bench.errors import BenchError
from optim_bench.executors import (
    InlineExecutor,
    available_cores,
    make_executor,
    worker_environment,
)
from optim_bench.executors._backlog import Backlog, group_of


@pytest.mark.parametrize("name", ["inline", "process"])
def test_contract(any_case, name, make_kind, build, make_spec):
    any_case(make_kind(name), build, make_spec)


def test_contract_of_workers(worker_case, make_kind, build, make_spec):
    worker_case(make_kind("process"), build, make_spec)


def test_a_worker_is_pinned_to_one_core(build, make_kind, make_spec):
    executor = build(make_kind("process"), jobs=1)
    executor.submit(make_spec())
    assert executor.wait().environment["cores"] == "1"


def test_a_worker_ends_with_the_process_that_asked_for_it(trainer):
    code = (
        "import sys\n"
        "from optim_bench.executors import ProcessExecutor\n"
        "from optim_bench.records import RunSpec\n"
        "executor = ProcessExecutor('fake_trainer:train', jobs=1, path=['.'])\n"
        "rate = {'learning_rate': 1e-3, 'trouble': 'hang'}\n"
        "executor.submit(RunSpec('toy', 1, 'jax', 'adamw', rate, 0, 40, 'cosine'))\n"
        "executor.wait()"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 60
    while not Path("hanging").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    worker = Path(f"/proc/{Path('hanging').read_text()}")
    assert worker.exists()
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while worker.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not worker.exists()


def gone(pid):
    deadline = time.monotonic() + 10
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(pid)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_worker_that_ends_at_rest_costs_no_run(build, make_kind, make_spec):
    executor = build(make_kind("process"), jobs=1)
    executor.submit(make_spec(0, trouble="pid"))
    assert executor.wait().status == "ok"
    pid = int(Path("pid-0").read_text())
    os.kill(pid, signal.SIGKILL)
    assert gone(pid)
    executor.submit(make_spec(1, trouble="pid"))
    assert executor.wait().status == "ok"
    assert int(Path("pid-1").read_text()) != pid


def test_a_dead_worker_is_noticed_though_its_child_lives_and_the_child_is_ended(
    build, make_kind, make_spec
):
    executor = build(make_kind("process"), jobs=1)
    executor.submit(make_spec(0, trouble="leave a child"))
    executor.submit(make_spec(1))
    lost, fine = executor.wait(), executor.wait()
    assert lost.error.startswith("the worker died (signal SIGKILL")
    assert (fine.spec.seed, fine.status) == (1, "ok")
    assert gone(int(Path("child").read_text()))


@pytest.mark.slow
def test_a_daemon_that_a_run_leaves_holds_nothing_up(build, make_kind, make_spec):
    executor = build(make_kind("process"), jobs=1)
    executor.submit(make_spec(0, trouble="leave a daemon"))
    try:
        assert executor.wait().error.startswith("the worker died (signal SIGKILL")
    finally:
        os.kill(int(Path("child").read_text()), signal.SIGKILL)


def test_an_answer_that_waited_for_us_is_no_late_one(build, make_kind, make_spec):
    executor = build(make_kind("process"), jobs=1, timeout=0.01)
    executor.submit(make_spec(0, trouble="pid"))
    executor._dispatch()
    deadline = time.monotonic() + 60
    while not Path("pid-0").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)  # as after Ctrl-Z
    assert executor.wait().status == "ok"


@pytest.mark.slow
def test_a_hanging_run_is_given_up_while_others_answer(build, make_kind, make_spec):
    executor = build(make_kind("process"), jobs=2, timeout=2)
    executor.submit(make_spec(0, trouble="hang"))
    for seed in range(1, 26):
        executor.submit(make_spec(seed, trouble="nap"))
    seeds = [executor.wait().spec.seed for _ in range(26)]
    assert seeds.index(0) < 25


def test_a_worker_without_a_name_for_its_signal_is_a_failed_run(build, make_kind, make_spec):
    executor = build(make_kind("process"), jobs=1)
    executor.submit(make_spec(0, trouble="signal", number=signal.SIGRTMIN + 3))
    assert executor.wait().error == f"the worker died (signal {signal.SIGRTMIN + 3})"


def test_a_worker_stays_with_its_optimizer_and_its_framework(make_spec):
    backlog = Backlog()
    for seed, optimizer in enumerate(["adamw", "stam", "adamw", "stam", "adamw"]):
        backlog.add(make_spec(seed, optimizer=optimizer))
    taken, mine = [], None
    while backlog:
        spec = backlog.take(mine, [])
        mine = group_of(spec)
        taken.append((spec.optimizer, spec.seed))
    assert taken == [("adamw", 0), ("adamw", 2), ("adamw", 4), ("stam", 1), ("stam", 3)]


def test_a_fresh_worker_begins_where_no_other_is(make_spec):
    backlog = Backlog()
    for seed, optimizer in enumerate(["adamw", "stam"]):
        backlog.add(make_spec(seed, optimizer=optimizer))
    other = group_of(make_spec(optimizer="adamw"))
    assert backlog.take(None, [other]).optimizer == "stam"


def test_a_batch_is_of_one_group_and_what_never_ran_goes_first(make_spec):
    backlog = Backlog()
    for seed, optimizer in enumerate(["adamw", "stam", "adamw", "stam", "adamw"]):
        backlog.add(make_spec(seed, optimizer=optimizer))
    batch = backlog.take_batch(2, [])
    assert [(s.optimizer, s.seed) for s in batch] == [("adamw", 0), ("adamw", 2)]
    backlog.put_back(batch[1:])
    assert [s.seed for s in backlog.take_batch(9, [])] == [2, 4]
    assert [s.seed for s in backlog.take_batch(9, [])] == [1, 3]
    assert not backlog


def test_variables_of_the_user_are_kept():
    environment = worker_environment(
        {"HOME": "here", "XLA_PYTHON_CLIENT_PREALLOCATE": "true", "OMP_NUM_THREADS": "8"}
    )
    assert environment["HOME"] == "here"
    assert environment["XLA_PYTHON_CLIENT_PREALLOCATE"] == "true"
    assert environment["OMP_NUM_THREADS"] == "1"


def test_there_is_a_core_to_use():
    assert len(available_cores()) >= 1


def test_an_unknown_executor_is_refused_with_its_neighbour():
    with pytest.raises(BenchError, match="unknown executor 'proces'; did you mean 'process'"):
        make_executor("proces")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("inline", {"jobs": 2}, "--jobs 2 needs worker processes; use --executor process"),
        ("inline", {"timeout": 5.0}, "--timeout 5 needs worker processes; use --executor process"),
        (
            "process",
            {"options": {"partition": "gpu"}},
            "--executor process takes no --executor-option; partition belongs to submitit or ray",
        ),
    ],
)
def test_what_would_be_ignored_is_refused(trainer, name, options, message):
    with pytest.raises(BenchError, match=message):
        make_executor(name, trainer, **options)
    assert isinstance(make_executor("inline", trainer), InlineExecutor)
