"""A trainer without a framework, and the contract that every executor has to meet with it.

The cases run in `tests` for the executors of one machine, and in `tests_submitit` and `tests_ray`,
whose sessions install the extras.
"""
# ruff: noqa: D102, D103, S101, S603
# The rules of test folders, which this file is for.

import _thread
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from optim_bench.executors import Executor, make_executor
from optim_bench.protocol.campaign import run_campaign
from optim_bench.records import RunRecord, RunSpec
from optim_bench.results.store import Store

FAKE_TRAINER = '''
"""Loss with a known best learning rate and a known ratio to adamw, noise shared within a seed."""
import math
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from optim_bench.records import RunRecord

RATIO = {"stam": 0.8, "stam_lite": 1.0, "stac": 1.25, "adamw": 1.0}
STATE = {"stam": 8, "stam_lite": 4, "stac": 1, "adamw": 8}


def train(spec, *, data_dir=None):
    trouble = spec.hyperparameters.get("trouble")
    here = Path(__file__).parent
    if trouble == "raise":
        raise RuntimeError("the trainer broke\\nand said more")
    if trouble == "exit":
        sys.exit("enough")
    if trouble in ("leave a child", "leave a daemon"):
        child = os.fork()
        if child == 0:
            if trouble == "leave a daemon":
                os.setsid()
            time.sleep(60)
            os._exit(0)
        (here / "child").write_text(str(child))
        os.kill(os.getpid(), signal.SIGKILL)
    if trouble == "die":
        print("last words", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if trouble == "hang":
        (here / "hanging").write_text(str(os.getpid()))
        time.sleep(60)
    if trouble == "nap":
        time.sleep(0.15)
    if trouble == "signal":
        os.kill(os.getpid(), spec.hyperparameters["number"])
    if trouble == "pid":
        (here / f"pid-{spec.seed}").write_text(str(os.getpid()))
    if trouble == "die with parent":
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    if trouble == "overlap":
        began, mine = time.time(), here / f"now-{spec.seed}"
        mine.touch()
        company, patience = spec.hyperparameters["company"], time.time() + 30
        while not (here / "met").exists() and time.time() < patience:
            if len(list(here.glob("now-*"))) >= company:
                (here / "met").touch()
            time.sleep(0.05)
        time.sleep(0.3)
        (here / f"run-{spec.seed}").write_text(f"{began} {time.time()}")
        mine.unlink()
    rate = spec.hyperparameters["learning_rate"]
    shared = np.random.default_rng([spec.seed, 1]).normal() * 0.1
    own = np.random.default_rng([spec.seed, *spec.optimizer.encode()]).normal() * 0.01
    off = math.log10(rate / 1e-3)
    diverged = rate > 0.5
    loss = RATIO[spec.optimizer] * math.exp(shared + own + off * off)
    losses = dict.fromkeys(("train_loss", "val_loss", "test_loss"), None if diverged else loss)
    steps = [spec.steps * (i + 1) // 4 for i in range(4)]
    return RunRecord(
        spec=spec,
        status="diverged" if diverged else "ok",
        metrics=losses,
        curve={
            "step": steps,
            "train_loss": [loss] * 4,
            "val_loss": [loss * (4 - i) for i in range(4)],
        },
        parameters=100,
        parameter_bytes=400,
        state_bytes=100 * STATE[spec.optimizer],
        seconds={"total": 0.0},
        environment={
            "threads": os.environ.get("OMP_NUM_THREADS", ""),
            "xla": os.environ.get("XLA_FLAGS", ""),
            "cores": str(len(os.sched_getaffinity(0))),
        },
        error=None,
    )


def slow(spec, *, data_dir=None):
    time.sleep(0.4)
    return train(spec)
'''


@pytest.fixture(scope="session")
def trainer_source() -> str:
    return textwrap.dedent(FAKE_TRAINER)


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trainer_source: str) -> str:
    """Reference of a trainer that is importable here and, through the folder, in workers."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "fake_trainer.py").write_text(trainer_source)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.chdir(folder)
    return "fake_trainer:train"


@pytest.fixture
def make_spec() -> Callable[..., RunSpec]:
    def make(seed: int = 0, rate: float = 1e-3, optimizer: str = "adamw", **extra: Any) -> RunSpec:
        hyperparameters = {"learning_rate": rate, **extra}
        return RunSpec("toy", 1, "jax", optimizer, hyperparameters, seed, 40, "cosine")

    return make


@dataclass(frozen=True)
class Kind:
    """An executor under test.

    Args:
        name: registry name.
        options: what only this executor understands.
        prelude: code that a command of its own runs first.
    """

    name: str
    options: Mapping[str, str] = field(default_factory=dict)
    prelude: str = ""


@pytest.fixture
def build(trainer: str, tmp_path: Path) -> Iterator[Callable[..., Executor]]:
    """Make executors whose workers find the test's trainer; all are closed at the end."""
    made: list[Executor] = []

    def make(kind: Kind, reference: str = trainer, **options: Any) -> Executor:
        executor = make_executor(
            kind.name,
            reference,
            path=[str(Path.cwd())],
            folder=tmp_path / "jobs",
            options=kind.options,
            **options,
        )
        made.append(executor)
        return executor

    yield make
    for executor in made:
        executor.close()


@pytest.fixture(scope="session")
def make_kind() -> type[Kind]:
    return Kind


def collect(executor: Executor, specs: Sequence[RunSpec]) -> list[RunRecord]:
    for spec in specs:
        executor.submit(spec)
    return [executor.wait() for _ in specs]


class AnyExecutor:
    """What holds with and without processes."""

    @staticmethod
    def every_spec_comes_back_once_with_the_same_numbers(kind, build, make_spec):
        specs = [make_spec(seed, rate) for seed in range(3) for rate in (1e-3, 1e-2, 0.9)]
        records = collect(build(kind), specs)
        assert {record.spec.key() for record in records} == {spec.key() for spec in specs}
        expected = {r.spec.key(): r.metrics for r in collect(build(Kind("inline")), specs)}
        assert {record.spec.key(): record.metrics for record in records} == expected
        assert {r.status for r in records} == {"ok", "diverged"}

    @staticmethod
    def failures_are_records_and_more_can_be_submitted_after_waiting(kind, build, make_spec):
        executor = build(kind)
        (bad,) = collect(executor, [make_spec(trouble="raise")])
        assert (bad.status, bad.error) == ("failed", "RuntimeError: the trainer broke")
        (left,) = collect(executor, [make_spec(trouble="exit")])
        assert (left.status, left.error) == ("failed", "SystemExit: enough")
        assert {r.spec.seed for r in collect(executor, [make_spec(1), make_spec(2)])} == {1, 2}
        with pytest.raises(RuntimeError, match="nothing is queued"):
            executor.wait()

    @staticmethod
    def what_is_withdrawn_never_runs_and_the_rest_does(kind, build, make_spec):
        executor = build(kind)
        specs = [make_spec(seed) for seed in range(12)]
        for spec in specs:
            executor.submit(spec)
        unwanted = [spec.key() for spec in specs[6:]]
        gone = executor.withdraw([*unwanted, make_spec(99).key()])
        # What has been sent to a worker stays there.
        assert set(gone) <= set(unwanted)
        left = {spec.key() for spec in specs} - set(gone)
        assert {executor.wait().spec.key() for _ in left} == left
        assert gone
        with pytest.raises(RuntimeError, match="nothing is queued"):
            executor.wait()

    @staticmethod
    def closing_forgets_the_queue_and_may_be_repeated(kind, build, make_spec):
        executor = build(kind)
        executor.submit(make_spec())
        executor.close()
        executor.close()
        with pytest.raises(RuntimeError, match="nothing is queued"):
            executor.wait()


class WorkerExecutor:
    """What holds wherever runs have processes of their own."""

    @staticmethod
    def what_a_framework_prints_does_not_mix_with_the_records(kind, build, make_spec):
        (record,) = collect(build(kind, jobs=1), [make_spec(trouble="chat")])
        assert record.status == "ok"
        assert record.environment["threads"] == "1"
        assert "--xla_cpu_multi_thread_eigen=false" in record.environment["xla"]

    @staticmethod
    def dead_and_hanging_workers_cost_their_runs_alone(kind, build, make_spec):
        troubles = {1: "die", 3: "hang"}
        specs = [
            make_spec(n, **({"trouble": troubles[n]} if n in troubles else {})) for n in range(5)
        ]
        records = {r.spec.seed: r for r in collect(build(kind, jobs=1, timeout=4), specs)}
        assert [records[n].status for n in range(5)] == ["ok", "failed", "ok", "failed", "ok"]
        assert records[1].error == "the worker died (signal SIGKILL: last words)"
        assert records[3].error == "gave up after 4 s"

    @staticmethod
    def a_trainer_that_cannot_be_imported_is_a_failed_run(kind, build, make_spec):
        (record,) = collect(build(kind, "no_such_module:train", jobs=1), [make_spec()])
        assert record.error == "ModuleNotFoundError: No module named 'no_such_module'"

    @staticmethod
    def no_more_runs_at_a_time_than_jobs(kind, build, make_spec):
        for jobs in (1, 2):
            executor = build(kind, jobs=jobs)
            collect(executor, [make_spec(n, trouble="overlap", company=jobs) for n in range(4)])
            executor.close()
            spans = [tuple(map(float, p.read_text().split())) for p in Path().glob("run-*")]
            assert len(spans) == 4
            assert max(sum(a <= t < b for a, b in spans) for t, _ in spans) == jobs
            for path in (*Path().glob("run-*"), Path("met")):
                path.unlink()

    @staticmethod
    def no_job_at_all_is_refused(kind, build, make_spec):
        with pytest.raises(ValueError, match="jobs is 0; at least one"):
            build(kind, jobs=0)

    @staticmethod
    def closing_stops_a_run_and_leaves_no_process_behind(kind, build, make_spec):
        executor = build(kind, jobs=1)
        executor.submit(make_spec(trouble="hang"))
        with interrupted_when(Path("hanging").exists), pytest.raises(KeyboardInterrupt):
            executor.wait()
        pid = int(Path("hanging").read_text())
        started = time.monotonic()
        executor.close()
        assert time.monotonic() - started < 20
        assert comes_true(lambda: not Path(f"/proc/{pid}").exists())

    @staticmethod
    def a_stopped_comparison_loses_nothing_and_leaves_no_process_behind(kind, build, make_spec):
        folder, tag = Path("out"), uuid.uuid4().hex
        command = comparison(kind, folder)
        environment = {**os.environ, "OPTIM_BENCH_TEST": tag}
        kept: dict[str, RunRecord] = {}
        for number, status, said in (
            (signal.SIGINT, 130, "interrupted"),
            (signal.SIGTERM, 143, "terminated"),
            (signal.SIGKILL, -9, ""),
        ):
            process = subprocess.Popen(
                command,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            wait_for_more(folder, len(kept), process)
            process.send_signal(number)
            _, err = process.communicate(timeout=60)
            assert process.returncode == status, err
            if said:
                line = f"error: {said}; every finished run is kept: repeat the command to go on"
                assert err == f"{line}\n"
            # Ray's own agents look after their parent from time to time only.
            assert comes_true(lambda: not tagged(tag), 150), tagged(tag)
            records = Store(folder).records()
            assert {key: records[key] for key in kept} == kept
            kept = records
        assert 3 <= len(kept) < 10
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
        store, whole = Store(folder), Store(Path("whole"))
        whole.open()
        run_campaign(store.plan(), whole, build(Kind("inline")), lambda progress: None)
        assert len(whole.records()) == 10
        assert {key: r.metrics for key, r in store.records().items()} == {
            key: r.metrics for key, r in whole.records().items()
        }
        assert comes_true(lambda: not tagged(tag)), tagged(tag)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test that takes `any_case` or `worker_case` the cases of the contract."""
    for name, cases in (("any_case", AnyExecutor), ("worker_case", WorkerExecutor)):
        if name in metafunc.fixturenames:
            names = [n for n in vars(cases) if not n.startswith("_")]
            slow = {"a_stopped_comparison_loses_nothing_and_leaves_no_process_behind"}
            marks = {True: [pytest.mark.slow], False: []}
            params = [pytest.param(getattr(cases, n), id=n, marks=marks[n in slow]) for n in names]
            metafunc.parametrize(name, params)


def comparison(kind: Kind, folder: Path) -> list[str]:
    """Return the command of a comparison of ten runs; the fake trainer lies in this folder."""
    code = (
        # What a shell starts in the background inherits an ignored interrupt.
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"{kind.prelude}\n"
        "from optim_bench.cli import build_app, run_app\n"
        "sys.exit(run_app(build_app('fake_trainer:slow'), sys.argv[1:]))"
    )
    arguments = ["run", "--tier", "smoke", "--workload", "digits-cnn", "--framework", "jax"]
    arguments += ["--optimizer", "stam", "--output", str(folder), "--executor", kind.name]
    arguments += ["--jobs", "1"]
    for key, value in kind.options.items():
        arguments += ["--executor-option", f"{key}={value}"]
    return [sys.executable, "-c", code, *arguments]


def wait_for_more(folder: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Wait until a folder holds more than `count` runs, or the process has ended."""
    comes_true(
        lambda: len(list(folder.glob("runs/*.json"))) > count or process.poll() is not None, 120
    )


def tagged(tag: str) -> list[str]:
    """Return the commands of the processes whose environment carries the tag."""
    found: list[str] = []
    for folder in Path("/proc").glob("[0-9]*"):
        # Processes end while we look.
        with contextlib.suppress(OSError):
            if f"OPTIM_BENCH_TEST={tag}".encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


@contextlib.contextmanager
def interrupted_when(check: Callable[[], bool]) -> Iterator[None]:
    """Interrupt the block, as Ctrl-C would, as soon as the check holds."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    def watch() -> None:
        comes_true(check, 60)
        _thread.interrupt_main(signal.SIGALRM)

    before = signal.signal(signal.SIGALRM, interrupt)
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        thread.join()
        signal.signal(signal.SIGALRM, before)


def comes_true(check: Callable[[], bool], seconds: float = 10) -> bool:
    """Wait until something holds and return whether it does."""
    deadline = time.monotonic() + seconds
    while not check() and time.monotonic() < deadline:
        time.sleep(0.1)
    return check()
