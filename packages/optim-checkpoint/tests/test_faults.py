"""Faults of the disk at every call: a typed error, nothing lost, nothing left behind."""

import errno
import os
import subprocess
import warnings
from pathlib import Path

import optim_checkpoint as oc
import pytest
from optim_checkpoint import _commit, _fs
from optim_checkpoint._commit import commit
from optim_checkpoint._options import Options


class FaultyOps(_fs.FileOps):
    """Fails the n-th call; a file is closed before its close fails, as the kernel does."""

    def __init__(self, at, code):
        self.at = at
        self.code = code
        self.count = 0

    def __getattribute__(self, name):
        method = object.__getattribute__(self, name)
        if name.startswith("_") or not callable(method):
            return method

        def call(*arguments):
            self.count += 1
            if self.count == self.at:
                if name == "close":
                    method(*arguments)
                raise OSError(self.code, os.strerror(self.code))
            return method(*arguments)

        return call


class ShortOps(_fs.FileOps):
    """Writes seven bytes at a time."""

    def write(self, fd, data):
        return super().write(fd, data[:7])


def open_files():
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.exists() else 0


def temporary(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith((".tmp", ".trash"))]


CODES = [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS]


@pytest.mark.parametrize("code", CODES, ids=[errno.errorcode[code] for code in CODES])
@pytest.mark.parametrize("keep", [None, 1])
def test_a_fault_at_every_call_loses_nothing(
    run_folder, make_document, load, check, monkeypatch, code, keep
):
    before = open_files()
    failed = 0
    for at in range(1, 500):
        faulty = FaultyOps(at, code)
        monkeypatch.setattr(_fs, "ops", faulty)
        step = 2 + at
        newest = load(run_folder).step
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            error = None
            try:
                commit(run_folder, make_document(step), Options(keep=keep))
            except oc.CheckpointWriteError as raised:
                error = raised
        if error is None:
            expected = step
            assert all("older generations" in str(item.message) for item in caught)
        else:
            failed += 1
            assert errno.errorcode[code] in str(error)
            assert "earlier steps are untouched" in str(error)
            assert error.needed > 0
            assert temporary(run_folder) == []
            expected = newest
        monkeypatch.setattr(_fs, "ops", _fs.FileOps())
        found = load(run_folder)
        assert (found.step, found.skipped) == (expected, ())
        check(found.value, expected)
        if faulty.count < at:
            break
    assert failed > 15
    assert open_files() == before
    commit(run_folder, make_document(900), Options(keep=1))
    assert sorted(path.name for path in run_folder.iterdir()) == [".lock", "step-00000900"]


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES], ids=errno.errorcode.get)
def test_some_faults_of_retention_are_only_warnings(run_folder, make_document, monkeypatch, number):
    class NoTrash(_fs.FileOps):
        def rename(self, old, new, folder):
            if new.startswith(".trash"):
                raise OSError(number, "broken")
            super().rename(old, new, folder)

    monkeypatch.setattr(_fs, "ops", NoTrash())
    with pytest.warns(oc.CheckpointWarning, match="step 3 is saved, but older generations could"):
        commit(run_folder, make_document(3), Options(keep=1))
    assert oc.steps(run_folder) == [1, 2, 3]


def test_short_writes_are_continued(tmp_path, make_document, load, check, monkeypatch):
    monkeypatch.setattr(_fs, "ops", ShortOps())
    commit(tmp_path, make_document(1))
    check(load(tmp_path).value, 1)


def test_a_disk_that_takes_nothing_is_an_error(tmp_path, make_document, monkeypatch):
    class Stuck(_fs.FileOps):
        def write(self, fd, data):
            return 0

    monkeypatch.setattr(_fs, "ops", Stuck())
    with pytest.raises(oc.CheckpointWriteError, match=r"EIO \(the file system accepted no bytes\)"):
        commit(tmp_path, make_document(1))


def test_a_file_system_without_reservation_works(tmp_path, make_document, load, monkeypatch):
    class NoAllocate(_fs.FileOps):
        def allocate(self, fd, size):
            raise OSError(errno.EOPNOTSUPP, "no")

    monkeypatch.setattr(_fs, "ops", NoAllocate())
    commit(tmp_path, make_document(1))
    assert load(tmp_path).step == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs needs root")
def test_a_full_tmpfs_keeps_the_last_step(tmp_path, make_document, load, check, monkeypatch):
    folder = tmp_path / "mount"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"mount refused: {mounted.stderr.decode().strip()}")
    try:
        commit(folder, make_document(1))
        with pytest.raises(oc.CheckpointWriteError, match="the file system has") as caught:
            commit(folder, make_document(2, 40_000))
        assert caught.value.free < caught.value.needed
        # The early check can be wrong by the time the data comes: then the kernel says it.
        monkeypatch.setattr(_commit, "check_space", lambda root, path, needed: None)
        with pytest.raises(oc.CheckpointWriteError, match="ENOSPC"):
            commit(folder, make_document(2, 40_000))
        assert temporary(folder) == []
        found = load(folder)
        assert found.step == 1
        check(found.value, 1)
        commit(folder, make_document(3))
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder nobody may write to")
def test_a_folder_that_takes_no_files_is_a_typed_error(make_document):
    with pytest.raises(oc.CheckpointWriteError, match="step 3 was not saved to /proc/run: E"):
        commit("/proc/run", make_document(3))


def test_a_root_that_is_a_file_is_a_typed_error(tmp_path, make_document):
    (tmp_path / "x").write_text("x")
    with pytest.raises(oc.CheckpointWriteError, match=r"EEXIST|ENOTDIR"):
        commit(tmp_path / "x", make_document(1))
