"""Errors of the system while reading: passing ones are waited for, none is taken for damage."""

import contextlib
import errno
import os
import shutil
import socket
import tempfile
from pathlib import Path

import optim_checkpoint as oc
import pytest
from optim_checkpoint import _commit, _reading
from optim_checkpoint._commit import commit
from optim_checkpoint._export import export
from optim_checkpoint._generation import Generation
from optim_checkpoint._options import Options

PASSING = [errno.EINTR, errno.EAGAIN, errno.EIO, errno.ENOMEM, errno.ENOTCONN, errno.ESTALE]
LASTING = [*PASSING, errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENODATA]
# What a file that is missing or of another kind says, and a file system with checksums of its own.
DAMAGE = {"ENOENT", "ENOTDIR", "EISDIR", "ELOOP", "EMLINK", "ENAMETOOLONG", "EUCLEAN", "EBADMSG"}


ALWAYS = float("inf")


class Faults:
    """Makes the n-th thing that is read fail, a number of times."""

    def __init__(self, monkeypatch):
        self.real = _reading.retried
        self.count, self.at, self.left, self.code = 0, 0, 0, 0
        monkeypatch.setattr(_reading, "PAUSES", (0.0, 0.0, 0.0))
        monkeypatch.setattr(_reading, "retried", self.retried)

    def set(self, at, code, times):
        self.count, self.at, self.code, self.left = 0, at, code, times

    def retried(self, work):
        self.count += 1
        later = self.left == ALWAYS and self.count > self.at > 0
        fatal = later or self.count == self.at

        def attempt():
            if fatal and self.left > 0:
                self.left -= 1
                raise OSError(self.code, os.strerror(self.code))
            return work()

        return self.real(attempt)


@pytest.fixture
def faults(monkeypatch):
    return Faults(monkeypatch)


READERS = {
    "restore": lambda folder, load: load(folder).step,
    "restore a step": lambda folder, load: load(folder, 2).step,
    "latest_step": lambda folder, load: oc.latest_step(folder),
    "steps": lambda folder, load: oc.steps(folder)[-1],
    "verify": lambda folder, load: oc.verify(folder).step,
    "inspect": lambda folder, load: oc.inspect(folder).step,
    "export": lambda folder, load: export(folder, folder / "x", force=True) and 2,
}


def count(faults, reader, folder, load):
    """Return how many things a reader reads."""
    faults.set(0, 0, 0)
    READERS[reader](folder, load)
    return faults.count


@pytest.mark.parametrize("code", PASSING, ids=errno.errorcode.get)
@pytest.mark.parametrize("reader", READERS)
def test_an_error_that_passes_is_not_noticed(run_folder, load, faults, reader, code):
    total = count(faults, reader, run_folder, load)
    assert total >= 2
    for at in range(1, total + 1):
        faults.set(at, code, 1)
        assert READERS[reader](run_folder, load) == 2
        assert faults.left == 0


@pytest.mark.parametrize("code", LASTING, ids=errno.errorcode.get)
@pytest.mark.parametrize("reader", READERS)
def test_an_error_that_stays_is_raised_and_no_older_step_taken(
    run_folder, load, faults, reader, code
):
    total = count(faults, reader, run_folder, load)
    assert total >= 2
    for at in range(1, total + 1):
        faults.set(at, code, ALWAYS)
        with pytest.raises(oc.CheckpointReadError, match=errno.errorcode[code]) as caught:
            READERS[reader](run_folder, load)
        assert caught.value.errno == code
        assert "step-00000002" in caught.value.filename or caught.value.filename == str(run_folder)
        assert not isinstance(caught.value, oc.CorruptCheckpointError)
        assert isinstance(caught.value, OSError)


@pytest.mark.parametrize("name", sorted(set(errno.errorcode.values())))
def test_of_all_errors_only_these_are_evidence_of_damage(run_folder, faults, name):
    faults.set(count(faults, "verify", run_folder, None), getattr(errno, name), ALWAYS)
    expected = oc.CorruptCheckpointError if name in DAMAGE else oc.CheckpointReadError
    with pytest.raises(expected, match="cannot be"):
        oc.verify(run_folder)


def test_attempts_are_bounded_and_wait(run_folder, monkeypatch):
    waited = []
    monkeypatch.setattr(_reading.time, "sleep", waited.append)

    def fail(fd, buffers, offset):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(oc.CheckpointReadError, match=r"cannot be read: EIO \(broken\); that is no"):
        oc.verify(run_folder)
    assert waited == list(_reading.PAUSES)
    assert 0 < sum(waited) < 1


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO], ids=errno.errorcode.get)
def test_a_step_that_cannot_be_read_is_not_written_again_unasked(
    run_folder, make_document, load, faults, monkeypatch, code
):
    faults.set(0, 0, 0)
    with pytest.raises(oc.CheckpointExistsError):
        commit(run_folder, make_document(2))
    for at in range(1, faults.count + 1):
        faults.set(at, code, ALWAYS)
        with pytest.raises(oc.CheckpointWriteError, match=errno.errorcode[code]) as caught:
            commit(run_folder, make_document(2))
        assert caught.value.errno == code
    assert "already holds step 2, and whether it is sound cannot be read" in str(caught.value)
    assert "pass replace=True" in str(caught.value)
    faults.set(0, 0, 0)
    assert load(run_folder).path.name == "step-00000002"

    def only_what_was_just_written(root, name, **options):
        assert options, "the step that is replaced was opened"
        return Generation(root, name, **options)

    monkeypatch.setattr(_commit, "Generation", only_what_was_just_written)
    assert commit(run_folder, make_document(2), Options(replace=True)).name == "step-00000002.g1"


@pytest.fixture
def locked_out(make_document):
    """A run whose step 2 belongs to somebody else."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    for step in (1, 2):
        commit(folder, make_document(step))
    (folder / "step-00000002").chmod(0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield folder
    if root:
        os.seteuid(0)
    (folder / "step-00000002").chmod(0o755)
    shutil.rmtree(folder)


def test_a_step_of_another_user_does_not_send_training_back(locked_out, load):
    for read in (load, oc.latest_step, oc.verify, oc.inspect):
        with pytest.raises(oc.CheckpointReadError, match=r"step-00000002: .*EACCES \(Permission"):
            read(locked_out)
    assert load(locked_out, 1).step == 1
    assert oc.steps(locked_out) == [1, 2]


def test_a_run_of_another_user_is_not_taken_for_an_empty_one(locked_out, load):
    inner = locked_out / "step-00000002"
    for read in (load, oc.latest_step, oc.steps, oc.verify):
        with pytest.raises(oc.CheckpointReadError, match="cannot be opened: EACCES") as caught:
            read(inner)
        assert caught.value.filename == str(inner)


def test_an_attempt_after_a_stale_handle_opens_everything_anew(run_folder, load, monkeypatch):
    stale = []
    read, close = os.preadv, os.close

    def preadv(fd, buffers, offset):
        if not stale:
            stale.append(fd)
        if fd == stale[0]:
            raise OSError(errno.ESTALE, "Stale file handle")
        return read(fd, buffers, offset)

    def close_and_heal(fd):
        if stale == [fd]:
            stale[0] = -1
        close(fd)

    monkeypatch.setattr(os, "preadv", preadv)
    monkeypatch.setattr(os, "close", close_and_heal)
    assert load(run_folder).step == 2
    assert stale == [-1]


def test_a_socket_in_the_place_of_a_file_is_damage(run_folder, load, check, monkeypatch):
    path = run_folder / "step-00000002" / "model" / "model.safetensors"
    path.unlink()
    monkeypatch.chdir(path.parent)
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as made:
        made.bind(path.name)
        with pytest.warns(oc.CheckpointWarning, match="is not a regular file"):
            check(load(run_folder).value, 1)


def test_too_little_memory_is_not_taken_for_damage(run_folder, load, monkeypatch):
    def none(*arguments):
        raise MemoryError("Unable to allocate")

    for place in ("_numpy.np.empty", "_generation.memoryview"):
        with monkeypatch.context() as patch:
            patch.setattr(f"optim_checkpoint.{place}", none, raising=False)
            with pytest.raises(MemoryError):
                load(run_folder)
    assert load(run_folder).step == 2
