"""One contract for every executor, and what only processes can do."""

import os
import time

import pytest
from optim_bench.errors import BenchError
from optim_bench.executors import (
    EXECUTORS,
    InlineExecutor,
    ProcessExecutor,
    available_cores,
    make_executor,
    worker_environment,
)


@pytest.fixture
def build(trainer):
    """Make executors whose workers find the test's trainer; all are closed at the end."""
    made = []

    def make(name="process", **options):
        executor = make_executor(name, trainer, path=[os.getcwd()], **options)  # noqa: PTH109
        made.append(executor)
        return executor

    yield make
    for executor in made:
        executor.close()


def collect(executor, specs):
    for spec in specs:
        executor.submit(spec)
    return [executor.wait() for _ in specs]


@pytest.mark.parametrize("name", EXECUTORS)
def test_every_spec_comes_back_once_with_the_same_numbers(build, make_spec, name):
    specs = [make_spec(seed, rate) for seed in range(3) for rate in (1e-3, 1e-2, 0.9)]
    records = collect(build(name), specs)
    assert {record.spec.key() for record in records} == {spec.key() for spec in specs}
    expected = {r.spec.key(): r.metrics for r in collect(build("inline"), specs)}
    assert {record.spec.key(): record.metrics for record in records} == expected
    assert {r.status for r in records} == {"ok", "diverged"}


@pytest.mark.parametrize("name", EXECUTORS)
def test_a_trainer_that_raises_gives_a_failed_record_of_one_line(build, make_spec, name):
    executor = build(name)
    bad, good = (
        collect(executor, [make_spec(trouble="raise")])[0],
        collect(executor, [make_spec()])[0],
    )
    assert (bad.status, bad.error) == ("failed", "RuntimeError: the trainer broke")
    assert good.status == "ok"


@pytest.mark.parametrize("name", EXECUTORS)
def test_more_can_be_submitted_after_waiting(build, make_spec, name):
    executor = build(name)
    assert collect(executor, [make_spec(0)])[0].spec.seed == 0
    assert {r.spec.seed for r in collect(executor, [make_spec(1), make_spec(2)])} == {1, 2}


@pytest.mark.parametrize("name", EXECUTORS)
def test_waiting_for_nothing_is_an_error(build, name):
    with pytest.raises(RuntimeError, match="nothing is queued"):
        build(name).wait()


@pytest.mark.parametrize("name", EXECUTORS)
def test_closing_forgets_the_queue_and_may_be_repeated(build, make_spec, name):
    executor = build(name)
    executor.submit(make_spec())
    executor.close()
    executor.close()
    with pytest.raises(RuntimeError, match="nothing is queued"):
        executor.wait()


def test_a_worker_is_pinned_to_one_core_and_one_thread(build, make_spec):
    (record,) = collect(build(), [make_spec()])
    assert record.environment["threads"] == "1"
    assert record.environment["cores"] == "1"
    assert "--xla_cpu_multi_thread_eigen=false" in record.environment["xla"]


def test_what_a_framework_prints_does_not_mix_with_the_records(build, make_spec):
    (record,) = collect(build(), [make_spec(trouble="chat")])
    assert record.status == "ok"


def test_a_dead_worker_costs_its_run_alone(build, make_spec):
    specs = [make_spec(0), make_spec(1, trouble="die"), make_spec(2), make_spec(3)]
    records = {r.spec.seed: r for r in collect(build(jobs=1), specs)}
    assert [records[seed].status for seed in range(4)] == ["ok", "failed", "ok", "ok"]
    assert records[1].error == "the worker died (signal SIGKILL: last words)"


def test_a_run_that_takes_too_long_is_given_up(build, make_spec):
    started = time.monotonic()
    hung, fine = collect(build(jobs=1, timeout=4), [make_spec(trouble="hang"), make_spec(1)])
    assert (hung.status, hung.error) == ("failed", "gave up after 4 s")
    assert fine.status == "ok"
    assert time.monotonic() - started < 40


def test_a_trainer_that_cannot_be_imported_is_a_failed_run(make_spec):
    executor = ProcessExecutor("no_such_module:train", jobs=1)
    try:
        (record,) = collect(executor, [make_spec()])
    finally:
        executor.close()
    assert record.error == "ModuleNotFoundError: No module named 'no_such_module'"


def test_closing_stops_a_run_at_once(build, make_spec):
    executor = build(jobs=1, timeout=60)
    executor.submit(make_spec(0))
    executor.wait()
    executor.submit(make_spec(1, trouble="hang"))
    executor._dispatch()
    started = time.monotonic()
    executor.close()
    assert time.monotonic() - started < 10


def test_a_worker_stays_with_its_optimizer_and_its_framework(make_spec):
    executor = ProcessExecutor("json:loads", jobs=1)
    order = ["adamw", "stam", "adamw", "stam", "adamw"]
    for seed, optimizer in enumerate(order):
        executor.submit(make_spec(seed, optimizer=optimizer))

    class Worker:
        spec = None
        group = ()

    worker = Worker()
    taken = []
    while executor._queued:
        spec = executor._queued.pop(executor._choose(worker))
        worker.group = (spec.framework, spec.workload, spec.optimizer)
        taken.append(spec.optimizer)
    assert taken == ["adamw"] * 3 + ["stam"] * 2


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
    ("options", "message"),
    [
        ({"jobs": 2}, "--jobs 2 needs worker processes; use --executor process"),
        ({"timeout": 5.0}, "--timeout 5 needs worker processes; use --executor process"),
    ],
)
def test_inline_refuses_what_it_would_ignore(trainer, options, message):
    with pytest.raises(BenchError, match=message):
        make_executor("inline", trainer, **options)
    assert isinstance(make_executor("inline", trainer), InlineExecutor)


def test_no_worker_is_refused(trainer):
    with pytest.raises(ValueError, match="jobs is 0; at least one worker has to run"):
        ProcessExecutor(trainer, jobs=0)
