"""One contract for every executor, and what only the executors of one machine can do."""

import json
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
    _batch,
    _process,
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


def comes_true(check, seconds=60):
    deadline = time.monotonic() + seconds
    while not check() and time.monotonic() < deadline:
        time.sleep(0.02)
    return check()


def gone(pid):
    return comes_true(lambda: not alive(pid), 10)


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
    # Its threads may end after its main one, and only then can anybody know.
    assert os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT).si_pid == pid
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


@pytest.mark.parametrize("dead", [False, True])
def test_answers_behind_the_first_one_are_no_late_ones(
    dead, build, make_kind, make_spec, monkeypatch
):
    monkeypatch.setattr(_process, "_POLL_SECONDS", 0.1)
    executor = build(make_kind("process"), jobs=2, timeout=None if dead else 0.01)
    for seed in range(2):
        executor.submit(make_spec(seed))
    executor._dispatch()
    assert comes_true(lambda: executor._done.qsize() == 2)
    if dead:
        for worker in executor._workers.values():
            os.kill(worker.pid, signal.SIGKILL)
        assert comes_true(lambda: executor._done.qsize() == 4)
    records = [executor.wait()]
    time.sleep(0.3)  # as long as it takes to write a record to a slow file server
    records.append(executor.wait())
    assert [(r.status, r.error) for r in records] == [("ok", None)] * 2


def test_a_group_is_signalled_while_its_number_is_its_own(build, make_kind, make_spec, monkeypatch):
    executor = build(make_kind("process"), jobs=1)
    executor.submit(make_spec(0, trouble="hang"))
    executor._dispatch()
    (worker,) = executor._workers.values()
    os.kill(worker.pid, signal.SIGKILL)
    assert comes_true(lambda: not worker.alive())
    kept: list[bool] = []
    monkeypatch.setattr(
        os, "killpg", lambda pid, number: kept.append(Path(f"/proc/{pid}").exists())
    )
    assert executor.wait().error == "the worker died (signal SIGKILL)"
    assert kept == [True]
    assert not Path(f"/proc/{worker.pid}").exists()


def test_a_worker_that_cannot_be_ended_holds_nothing_up(build, make_kind, make_spec, monkeypatch):
    monkeypatch.setattr(_process, "_END_SECONDS", 0.2)
    monkeypatch.setattr(_process, "_FAREWELL_SECONDS", 0.2)
    executor = build(make_kind("process"), jobs=1, timeout=0.1)
    executor.submit(make_spec(0))
    executor._dispatch()
    (worker,) = executor._workers.values()
    os.kill(worker.pid, signal.SIGSTOP)
    try:
        with monkeypatch.context() as patch:
            # A file server that does not answer is as good as a signal that is not sent.
            patch.setattr(os, "killpg", lambda pid, number: None)
            error = executor.wait().error
    finally:
        os.kill(worker.pid, signal.SIGKILL)
        worker._process.wait()
    assert error == (
        f"gave up after 0.1 s; its process {worker.pid} does not end, even by SIGKILL, and is left "
        "behind"
    )


def test_a_worker_that_closes_its_pipe_and_goes_on_is_ended(
    build, make_kind, make_spec, monkeypatch
):
    monkeypatch.setattr(_process, "_END_SECONDS", 1.0)
    Path("mute.py").write_text(
        "import os, time\ndef train(spec, *, data_dir=None):\n    os.closerange(3, 99)\n"
        "    time.sleep(20)\n"
    )
    executor = build(make_kind("process"), "mute:train", jobs=1)
    executor.submit(make_spec(0))
    executor._dispatch()
    (worker,) = executor._workers.values()
    assert executor.wait().error == "the worker closed its pipe and does not end"
    assert not Path(f"/proc/{worker.pid}").exists()


def test_a_job_ends_though_it_cannot_say_so(tmp_path, monkeypatch):
    class EndError(Exception):
        pass

    def end(status):
        raise EndError

    monkeypatch.setattr(os, "_exit", end)
    # The comparison's end took the lease and these folders away, and is about to take the last one.
    batch = _batch.Batch("0", tmp_path, (), "json:loads", None, None, (), 300.0, None)
    with pytest.raises(EndError):
        _batch._watch(batch)


@pytest.mark.parametrize("name", ["inline", "process"])
def test_the_record_of_another_run_is_a_failed_run(name, build, make_kind, make_spec):
    Path("foreign.py").write_text(
        "import dataclasses, fake_trainer\ndef train(spec, *, data_dir=None):\n"
        "    return fake_trainer.train(dataclasses.replace(spec, seed=7, steps=41))\n"
    )
    executor = build(make_kind(name), "foreign:train")
    executor.submit(make_spec(0))
    record = executor.wait()
    assert (record.spec, record.status) == (make_spec(0), "failed")
    assert record.error == (
        "the answer is of another run (seed is 7, not 0, steps is 41, not 40); a trainer has to "
        "return the spec that it is given"
    )


def test_a_second_answer_to_one_run_does_not_answer_for_the_next(build, make_kind, make_spec):
    inline = build(make_kind("inline"))
    inline.submit(make_spec(0))
    before = json.dumps(inline.wait().to_json())
    executor = build(make_kind("process"), jobs=1)
    executor.submit(make_spec(1, trouble="hang"))
    executor._dispatch()
    executor._done.put((executor._workers[0], before))
    record = executor.wait()
    assert (record.spec.seed, record.status) == (1, "failed")
    assert "seed is 0, not 1); a trainer has to return" in record.error


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
