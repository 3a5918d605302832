"""Saving in the background: where it saves, and who hears of a save that failed."""

import errno
import itertools
import os
import signal
import subprocess
import sys
import threading
import warnings

import numpy as np
import optim_checkpoint as oc
import pytest
from optim_checkpoint import _background, _fs, _parallel, _unreported
from optim_checkpoint._background import BackgroundCheckpointer
from optim_checkpoint._commit import commit


class Slow(_fs.FileOps):
    """Waits before the first folder is made until it is told to go on."""

    def __init__(self):
        self.go = threading.Event()

    def make_folder(self, name, folder):
        assert self.go.wait(30)
        super().make_folder(name, folder)


def test_a_relative_folder_is_that_of_the_start(tmp_path, make_document, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "a")
    checkpointer = BackgroundCheckpointer("run")
    checkpointer._submit(make_document(1))
    assert checkpointer.wait() == tmp_path / "a" / "run" / "step-00000001"
    slow = Slow()
    monkeypatch.setattr(_fs, "ops", slow)
    checkpointer._submit(make_document(2))
    monkeypatch.chdir(tmp_path / "b")
    slow.go.set()
    assert checkpointer.wait() == tmp_path / "a" / "run" / "step-00000002"
    checkpointer._submit(make_document(3))
    checkpointer.wait()
    assert oc.steps(tmp_path / "a" / "run") == [1, 2, 3]
    assert list((tmp_path / "b").iterdir()) == []


SCRIPT = """
import atexit, errno, os, sys, tempfile
atexit.register(print, "what was to be done at the end")
from optim_checkpoint import _fs
from optim_checkpoint._background import BackgroundCheckpointer
from optim_checkpoint._commit import Document

class Full(_fs.FileOps):
    def write(self, fd, data):
        raise OSError(errno.ENOSPC, "disk full")

_fs.ops = Full()
with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as root:
    checkpointer = BackgroundCheckpointer(root)
    checkpointer._submit(Document(7, {}, {}, {}))
    SITUATION
print("done")
"""


def end_of(situation):
    indented = situation.replace("\n", "\n    ")
    code = SCRIPT.replace("SITUATION", indented)
    out = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True
    )
    assert "what was to be done at the end" in out.stdout
    return out.returncode, out.stderr


@pytest.mark.parametrize("situation", ["pass", "checkpointer._writer.join(); del checkpointer"])
def test_a_failure_that_nobody_waits_for_is_said_at_the_end(situation):
    code, err = end_of(situation)
    assert code == 120
    assert err.startswith(
        "optim-checkpoint: a save in the background failed, and nothing has asked"
    )
    assert "step 7 was not saved" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "situation",
    [
        "try: checkpointer.wait()\nexcept Exception: pass",
        "try: checkpointer._submit(Document(8, {}, {}, {}))\nexcept Exception: pass",
    ],
)
def test_a_failure_that_was_raised_is_not_said_again(situation):
    assert end_of(situation) == (0, "")


def test_a_failure_is_not_that_of_a_forked_process():
    code, err = end_of(
        "checkpointer._writer.join()\npid = os.fork()\n"
        "if pid == 0: sys.exit(0)\n"
        "print(os.waitpid(pid, 0)[1])\nassert os.waitstatus_to_exitcode(0) == 0\n"
        "try: checkpointer.wait()\nexcept Exception: pass"
    )
    assert (code, err) == (0, "")


CHILD = """
import errno, multiprocessing, sys, tempfile
from optim_checkpoint import _fs
from optim_checkpoint._background import BackgroundCheckpointer
from optim_checkpoint._commit import Document

class Full(_fs.FileOps):
    def write(self, fd, data):
        raise OSError(errno.ENOSPC, "disk full")

def train(root, then):
    _fs.ops = Full()
    checkpointer = BackgroundCheckpointer(root)
    checkpointer._submit(Document(7, {}, {}, {}))
    if then == "raise":
        raise KeyError("mine")
    if then == "wait":
        try:
            checkpointer.wait()
        except Exception:
            pass

if __name__ == "__main__":
    how, then = sys.argv[1:]
    with tempfile.TemporaryDirectory() as root:
        process = multiprocessing.get_context(how).Process(target=train, args=(root, then))
        process.start()
        process.join()
        print(process.exitcode)
"""


@pytest.mark.parametrize(
    ("how", "then", "expected"),
    [
        ("fork", "end", [120]),
        ("forkserver", "end", [120]),
        ("spawn", "end", [120]),
        # From Python 3.13 on the status is chosen before anything can be added to it.
        ("fork", "raise", [1, 120]),
        ("fork", "wait", [0]),
    ],
)
def test_a_failure_in_a_process_of_multiprocessing_is_said(tmp_path, how, then, expected):
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    out = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), how, then], capture_output=True, text=True
    )
    assert int(out.stdout) in expected
    assert out.stderr.count("step 7 was not saved") == (then != "wait")
    assert ("KeyError: 'mine'" in out.stderr) == (then == "raise")


def test_a_relative_folder_where_there_is_no_working_folder_is_a_typed_error(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(
        oc.CheckpointWriteError, match=r"saved to run: ENOENT .* working folder; give an absolute"
    ) as caught:
        BackgroundCheckpointer("run")
    assert caught.value.errno == errno.ENOENT
    BackgroundCheckpointer(tmp_path / "run")


@pytest.mark.parametrize("closed", [None, "closed"])
def test_a_process_without_standard_error_fails_all_the_same(closed):
    line = "sys.stderr = None" if closed is None else "sys.stderr.close()"
    assert end_of(line) == (120, "")


def test_a_forked_process_saves_nothing_of_its_parent(tmp_path, make_document, monkeypatch):
    checkpointer = BackgroundCheckpointer(tmp_path)
    checkpointer._submit(make_document(1))
    last = checkpointer.wait()
    checkpointer._submit(make_document(2))
    monkeypatch.setattr(_background.os, "getpid", lambda: -5)
    assert checkpointer.wait() == last
    with pytest.raises(
        oc.CheckpointWriteError, match=r"step 3 was not saved: .* belongs to process \d+, which"
    ):
        checkpointer._submit(make_document(3))
    monkeypatch.undo()
    checkpointer.wait()
    assert oc.steps(tmp_path) == [1, 2]


def interrupted(call, number):
    """Say whether a call came to the point of this number, and interrupt it there.

    Python looks for signals when a function begins and when one in C has returned.
    """
    file, start = _background.__file__, threading.Thread.start.__code__
    if sys.version_info >= (3, 14):
        # Interrupted as it enters a `with`, Python 3.14 leaves the lock taken, and inside of
        # Thread.start that is a lock of its own: no thread starts or ends any more.
        start = None
    left = number

    def strike(frame, event, argument):
        nonlocal left
        code = frame.f_code
        if event in ("call", "c_return") and (code.co_filename == file or code is start):
            left -= 1
            if left == 0:
                sys.setprofile(None)
                raise KeyboardInterrupt

    sys.setprofile(strike)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(None)
    return False


def test_an_interrupt_wherever_it_lands_mixes_no_two_saves(
    memory_path, make_document, load, check, monkeypatch
):
    committed = 0
    for number in itertools.count(1):
        root = memory_path / str(number)
        checkpointer = BackgroundCheckpointer(root)
        checkpointer._submit(make_document(1))
        checkpointer.wait()
        slow = Slow()
        monkeypatch.setattr(_fs, "ops", slow)
        timer = threading.Timer(0.02, slow.go.set)
        timer.start()
        hit = interrupted(lambda c=checkpointer: (c._submit(make_document(2)), c.wait()), number)
        # The thread of step 2, if there is one, has still to write.
        checkpointer._submit(make_document(3))
        assert checkpointer.wait() == root / "step-00000003"
        timer.join()
        for step in oc.steps(root):
            check(load(root, step).value, step)
        if not hit:
            break
        committed += 2 in oc.steps(root)
    assert 2 < committed < number - 10


def test_an_interrupt_while_it_waits_does_not_end_the_waiting(
    tmp_path, make_document, load, check, monkeypatch
):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    slow = Slow()
    monkeypatch.setattr(_fs, "ops", slow)
    checkpointer = BackgroundCheckpointer(tmp_path)
    checkpointer._submit(make_document(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            checkpointer.wait()
    finally:
        signal.signal(signal.SIGALRM, before)
    threading.Timer(0.1, slow.go.set).start()
    checkpointer._submit(make_document(2))
    checkpointer.wait()
    for step in (1, 2):
        check(load(tmp_path, step).value, step)


def test_no_memory_for_the_copy_is_a_typed_error(tmp_path, make_document, monkeypatch):
    checkpointer, document = BackgroundCheckpointer(tmp_path), make_document(1)
    empty = np.empty

    def full(size, *arguments):
        if size:
            raise MemoryError("Unable to allocate")
        return empty(size, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(_background.np, "empty", full)
        with pytest.raises(
            oc.CheckpointWriteError, match=r"step 1 .*: no memory for a copy of \d+ bytes; save\(\)"
        ) as caught:
            checkpointer._submit(document)
        assert caught.value.needed > 1000
    checkpointer._submit(make_document(2))
    checkpointer.wait()
    assert oc.steps(tmp_path) == [2]


def test_an_error_of_the_block_is_not_hidden_by_any_other(tmp_path, make_document, monkeypatch):
    def broken(*arguments, **options):
        raise ZeroDivisionError("not one of ours")

    monkeypatch.setattr(_background, "commit", broken)

    def fail_in_the_block():
        with BackgroundCheckpointer(tmp_path) as checkpointer:
            checkpointer._submit(make_document(1))
            raise KeyError("mine")

    with (
        pytest.warns(oc.CheckpointWarning, match="the pending save failed: not one of ours"),
        pytest.raises(KeyError, match="mine"),
    ):
        fail_in_the_block()
    assert not _unreported._failures


def refuse_threads(monkeypatch, after=0):
    start, started = threading.Thread.start, []

    def refuse(self):
        if len(started) == after:
            raise RuntimeError("can't start new thread")
        started.append(self)
        start(self)

    monkeypatch.setattr(threading.Thread, "start", refuse)


@pytest.mark.parametrize("after", [0, 1])
def test_work_is_done_with_the_threads_that_there_are(tmp_path, make_document, monkeypatch, after):
    monkeypatch.setattr(_parallel, "BATCH", 1)
    monkeypatch.setattr(_parallel, "workers", lambda: 4)
    commit(tmp_path, make_document(1))
    refuse_threads(monkeypatch, after)
    done = []
    _parallel.run([(1, lambda i=i: done.append(i)) for i in range(10)])
    assert sorted(done) == list(range(10))
    assert oc.verify(tmp_path).tensors == 7


def test_a_save_that_goes_on_while_the_interpreter_ends_can_read(tmp_path):
    """Python gives no work to a pool of threads any more at that time."""
    code = f"""
import threading, time
from optim_checkpoint import _parallel
_parallel.BATCH = 1
_parallel.workers = lambda: 3
def touch(i):
    open(f"{tmp_path}/{{i}}", "w").close()
def late():
    time.sleep(0.3)
    _parallel.run([(1, lambda i=i: touch(i)) for i in range(5)])
threading.Thread(target=late).start()
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (out.returncode, out.stderr) == (0, "")
    assert len(list(tmp_path.iterdir())) == 5


def test_too_few_descriptors_are_a_typed_error(tmp_path, make_document, monkeypatch):
    commit(tmp_path, make_document(1))

    def none(*arguments, **options):
        raise OSError(errno.EMFILE, "Too many open files")

    for function in ("open", "scandir"):
        with monkeypatch.context() as patch:
            patch.setattr(os, function, none)
            with pytest.raises(oc.CheckpointReadError, match="EMFILE"):
                oc.steps(tmp_path)
            with pytest.raises(oc.CheckpointWriteError, match="EMFILE") as caught:
                commit(tmp_path, make_document(2))
            assert caught.value.errno == errno.EMFILE
            checkpointer = BackgroundCheckpointer(tmp_path)
            checkpointer._submit(make_document(2))
            with pytest.raises(oc.CheckpointWriteError, match="EMFILE"):
                checkpointer.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        commit(tmp_path, make_document(2))
