"""Locks: none outlives the process that took it, and a file system without any is told of."""

import contextlib
import errno
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings

import optim_checkpoint as oc
import pytest
from optim_checkpoint import _fs, _locks
from optim_checkpoint._commit import Document, commit
from optim_checkpoint._options import Options
from optim_checkpoint._shard import Entry

# A trainer saves (or reads) in a thread, forks a worker meanwhile, says so and waits to be killed.
TRAINER = """
import os, sys, threading, time
from optim_checkpoint import _fs, _select
from optim_checkpoint._background import BackgroundCheckpointer
from optim_checkpoint._commit import Document

root, what = sys.argv[1:]
reached = threading.Event()

def stay(*_):
    reached.set()
    time.sleep(60)

if what == "save":
    class Slow(_fs.FileOps):
        rename = stay
    _fs.ops = Slow()
    BackgroundCheckpointer(root)._submit(Document(9, {}, {}, {}))
else:
    threading.Thread(target=_select.choose, args=(root, 1, stay)).start()
reached.wait()
if os.fork() == 0:
    print(os.getpid(), flush=True)
    os.close(1)
time.sleep(60)
os._exit(0)
"""


@pytest.fixture(params=["save", "read"])
def orphan(request, run_folder):
    """What a killed trainer's worker, which lives on, was forked in the middle of."""
    command = [sys.executable, "-W", "ignore", "-c", TRAINER, str(run_folder), request.param]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as trainer:
        worker = int(trainer.stdout.readline())
        trainer.kill()
    yield request.param
    os.kill(worker, signal.SIGKILL)


def test_a_worker_keeps_no_lock_of_a_trainer_that_was_killed(orphan, run_folder, make_document):
    commit(run_folder, make_document(3), Options(keep=1))
    assert sorted(path.name for path in run_folder.iterdir()) == [".lock", "step-00000003"]


def in_fork(work):
    """Return what `work` returns in a forked process, a small number."""
    with warnings.catch_warnings():
        # Threads of other tests do not matter to this child.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = work()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_forked_process_does_not_give_back_the_lock_of_its_parent(tmp_path, make_document):
    def forks():
        def child():
            # What `finally` does when the child leaves the save it was forked in.
            for held in list(before):
                held.release()
            return len(_locks._held)

        before = set(_locks._held)
        assert len(before) == 1
        assert in_fork(child) == 0
        with pytest.raises(oc.CheckpointWriteError, match="another writer holds"):
            commit(tmp_path, make_document(2))
        return memoryview(b"abcd")

    commit(tmp_path, Document(1, {}, {}, {"model": [Entry("x", "U8", (4,), forks)]}))
    assert not _locks._held
    commit(tmp_path, make_document(2))


def test_a_descriptor_that_was_open_during_a_fork_is_not_used(tmp_path):
    opened = []

    def opening():
        opened.append(os.open(tmp_path / "x", os.O_RDWR | os.O_CREAT))
        if len(opened) == 1:
            _locks._count()
        return opened[-1]

    held = _locks.take(opening)
    assert len(opened) == 2
    assert held in _locks._held
    held.release()
    held.release()
    assert not _locks._held


NO_LOCKS = [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL]


@pytest.fixture(params=NO_LOCKS, ids=errno.errorcode.get)
def no_locks(request, monkeypatch):
    def refuse(fd, operation):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(_locks, "_warned", set())
    return errno.errorcode[request.param]


def test_without_locks_it_saves_and_says_so_once(tmp_path, make_document, load, check, no_locks):
    with pytest.warns(oc.CheckpointWarning) as caught:
        commit(tmp_path, make_document(1), Options(keep=1))
    if no_locks == "EOPNOTSUPP":
        no_locks = r"EOPNOTSUPP|ENOTSUP"
    (warning,) = caught
    assert str(tmp_path) in str(warning.message)
    with pytest.raises(oc.CheckpointWarning, match=rf"has no locks \(({no_locks})\): see to it"):
        raise warning.message
    commit(tmp_path, make_document(2), Options(keep=1))
    check(load(tmp_path).value, 2)
    assert oc.steps(tmp_path) == [2]
    assert not _locks._held


def test_another_failure_of_a_lock_is_an_error(tmp_path, make_document, monkeypatch):
    def refuse(fd, operation):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(oc.CheckpointWriteError, match="EIO") as caught:
        commit(tmp_path, make_document(1))
    assert caught.value.errno == errno.EIO
    assert not _locks._held


class Between(_fs.FileOps):
    """Lets another writer save before the n-th call of this one."""

    def __init__(self, at, other):
        self.at, self.other, self.count = at, other, 0

    def __getattribute__(self, name):
        method = object.__getattribute__(self, name)
        if name.startswith("_") or not callable(method):
            return method

        def call(*arguments):
            self.count += 1
            if self.count == self.at:
                _fs.ops = _fs.FileOps()
                self.other()
                _fs.ops = self
            return method(*arguments)

        return call


@pytest.mark.filterwarnings("ignore::optim_checkpoint.CheckpointWarning")
@pytest.mark.parametrize("other_step", [3, 4])
def test_of_two_writers_without_locks_none_loses_what_it_was_told_is_saved(
    memory_path, make_document, load, check, monkeypatch, other_step
):
    def refuse(fd, operation):
        raise OSError(errno.ENOSYS, "no")

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(_fs, "ops", _fs.FileOps())
    failed = 0
    for at in range(1, 200):
        folder = memory_path / str(at)
        commit(folder, make_document(1))
        saved, message = [], ""

        def other(folder=folder, saved=saved):
            with contextlib.suppress(oc.CheckpointExistsError):
                commit(folder, make_document(other_step), Options(keep=3))
                saved.append(other_step)

        between = Between(at, other)
        monkeypatch.setattr(_fs, "ops", between)
        try:
            commit(folder, make_document(3), Options(keep=3))
            saved.append(3)
        except (oc.CheckpointWriteError, oc.CheckpointExistsError) as error:
            failed += 1
            message = str(error)
        monkeypatch.setattr(_fs, "ops", _fs.FileOps())
        assert re.search("step 3 was not saved|already holds step 3|^$", message)
        for step in {1, *saved}:
            found = load(folder, step)
            assert found.skipped == ()
            check(found.value, step)
        if between.count < at:
            break
    assert failed > 10
    assert at > 20


def test_a_folder_that_is_being_swept_cannot_be_committed_half_removed(
    run_folder, make_document, monkeypatch
):
    sealed = run_folder / ".tmp-step-00000007-0123456789abcdef"
    shutil.copytree(run_folder / "step-00000002", sealed)
    tried = []

    class Racing(_fs.FileOps):
        def remove(self, name, folder):
            tried.append(name)
            with contextlib.suppress(FileNotFoundError):
                sealed.rename(run_folder / "step-00000007")
            super().remove(name, folder)

    monkeypatch.setattr(_fs, "ops", Racing())
    commit(run_folder, make_document(3))
    assert "manifest.json" in tried
    assert oc.steps(run_folder) == [1, 2, 3]
