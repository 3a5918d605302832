import errno
import fcntl
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import optim_checkpoint as oc
import pytest
from optim_checkpoint import _commit, _fs
from optim_checkpoint._commit import Document, commit
from optim_checkpoint._options import Options
from optim_checkpoint._shard import Entry


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_committed_step_is_read_back_bit_for_bit(tmp_path, make_document, load, check):
    path = commit(tmp_path, make_document(7))
    assert path == tmp_path / "step-00000007"
    chosen = load(tmp_path)
    assert (chosen.step, chosen.path, chosen.skipped) == (7, path, ())
    check(chosen.value, 7)


def test_equal_states_give_equal_bytes(tmp_path, make_document):
    first = commit(tmp_path / "a", make_document(3))
    second = commit(tmp_path / "b", make_document(3))
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert len(files) == 3
    for file in files:
        assert (first / file).read_bytes() == (second / file).read_bytes()


def test_a_missing_root_is_created_with_its_parents(tmp_path, make_document):
    commit(tmp_path / "x" / "y" / "z", make_document(0))
    assert oc.steps(tmp_path / "x" / "y" / "z") == [0]


def test_files_have_the_mode_of_the_umask(tmp_path, make_document):
    old = os.umask(0o027)
    try:
        path = commit(tmp_path, make_document(1))
    finally:
        os.umask(old)
    assert stat.S_IMODE((path / "model" / "model.safetensors").stat().st_mode) == 0o640
    assert stat.S_IMODE((path / "model").stat().st_mode) == 0o750


def test_a_step_is_not_overwritten_unasked(run_folder, make_document, load, check):
    with pytest.raises(oc.CheckpointExistsError, match=r"already holds step 2 \(step-00000002\)"):
        commit(run_folder, make_document(2))
    path = commit(run_folder, make_document(2), Options(replace=True))
    assert path.name == "step-00000002.g1"
    assert commit(run_folder, make_document(2), Options(replace=True)).name == "step-00000002.g2"
    assert oc.steps(run_folder) == [1, 2]
    assert load(run_folder).path.name == "step-00000002.g2"
    check(load(run_folder).value, 2)


def damage(path):
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


def test_a_damaged_step_does_not_end_the_training_that_comes_to_it_again(
    run_folder, make_document, load, check
):
    damage(run_folder / "step-00000002" / "optim" / "optim.safetensors")
    with pytest.warns(oc.CheckpointWarning, match="skipped a damaged checkpoint: step-00000002"):
        assert load(run_folder).step == 1
    assert commit(run_folder, make_document(2), Options(keep=2)).name == "step-00000002.g1"
    check(load(run_folder).value, 2)
    assert names(run_folder) == [".lock", "step-00000001", "step-00000002.g1"]
    with pytest.raises(oc.CheckpointExistsError):
        commit(run_folder, make_document(2))


def test_retention_keeps_the_newest_and_only_then(tmp_path, make_document):
    for step in range(1, 6):
        commit(tmp_path, make_document(step), Options(keep=3))
    assert oc.steps(tmp_path) == [3, 4, 5]
    commit(tmp_path, make_document(5), Options(keep=3, replace=True))
    assert names(tmp_path) == [".lock", "step-00000003", "step-00000004", "step-00000005.g1"]


def test_retention_never_removes_what_was_just_saved(tmp_path, make_document):
    for step in (100, 200, 300):
        commit(tmp_path, make_document(step))
    commit(tmp_path, make_document(150), Options(keep=1))
    assert oc.steps(tmp_path) == [150, 200, 300]
    commit(tmp_path, make_document(301), Options(keep=1))
    assert oc.steps(tmp_path) == [301]


def test_retention_leaves_a_generation_that_is_being_read(run_folder, make_document):
    def read(generation):
        commit(run_folder, make_document(3), Options(keep=1))
        return generation.name.step

    assert oc._select.choose(run_folder, 1, read).value == 1
    assert oc.steps(run_folder) == [1, 3]
    commit(run_folder, make_document(4), Options(keep=1))
    assert oc.steps(run_folder) == [4]


def test_retention_works_where_folders_cannot_be_locked(tmp_path, make_document, monkeypatch):
    """NFS makes locks of files of them, and an exclusive one needs a file open to write."""
    flock = fcntl.flock

    def lock_files_only(fd, operation):
        if stat.S_ISDIR(os.fstat(fd).st_mode) and operation & fcntl.LOCK_EX:
            raise OSError(errno.EBADF, "Bad file descriptor")
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", lock_files_only)
    for step in (1, 2, 3):
        commit(tmp_path, make_document(step), Options(keep=2))
    assert oc.steps(tmp_path) == [2, 3]


def test_a_second_writer_is_told_to_wait(tmp_path, make_document):
    def second_writer():
        with pytest.raises(oc.CheckpointWriteError, match="another writer holds"):
            commit(tmp_path, make_document(2))
        return memoryview(b"abcd")

    entry = Entry("x", "U8", (4,), second_writer)
    commit(tmp_path, Document(1, {}, {}, {"model": [entry]}))
    assert oc.steps(tmp_path) == [1]


@pytest.fixture
def inherited(monkeypatch):
    """Keep every locked descriptor open, as a process forked meanwhile does."""
    copies = []
    flock = fcntl.flock

    def keep(fd, operation):
        flock(fd, operation)
        if operation != fcntl.LOCK_UN:
            copies.append(os.dup(fd))

    monkeypatch.setattr(fcntl, "flock", keep)
    yield copies
    for fd in copies:
        os.close(fd)


def test_a_process_forked_during_a_save_does_not_keep_the_lock(tmp_path, make_document, inherited):
    commit(tmp_path, make_document(1))
    assert inherited
    commit(tmp_path, make_document(2))
    assert oc.steps(tmp_path) == [1, 2]


def test_a_process_forked_during_a_restore_does_not_stop_retention(
    run_folder, make_document, inherited, load
):
    load(run_folder, 1)
    assert inherited
    commit(run_folder, make_document(3), Options(keep=1))
    assert oc.steps(run_folder) == [3]


def test_a_root_that_another_process_just_made_is_made_durable_too(
    tmp_path, make_document, monkeypatch
):
    class Late(_fs.FileOps):
        synced = ()

        def make_folder(self, name, folder):
            if name == "run":
                os.mkdir(name, dir_fd=folder)
            super().make_folder(name, folder)

        def sync(self, fd):
            self.synced += (os.fstat(fd).st_ino,)
            super().sync(fd)

    ops = Late()
    monkeypatch.setattr(_fs, "ops", ops)
    commit(tmp_path / "run", make_document(1))
    assert ops.synced[0] == tmp_path.stat().st_ino


def test_leftovers_of_a_killed_writer_are_swept(run_folder, make_document):
    temporary = run_folder / ".tmp-step-00000009-0123456789abcdef"
    (temporary / "model").mkdir(parents=True)
    (temporary / "model" / "x").write_bytes(b"x")
    (run_folder / ".trash-step-00000001.g2-fedcba9876543210").mkdir()
    commit(run_folder, make_document(3))
    assert names(run_folder) == [".lock", "step-00000001", "step-00000002", "step-00000003"]


def test_folders_that_only_look_like_steps_are_ignored(run_folder):
    for name in ("step-5", "step-00000003.g0", "step-000000005", "step-0000000x", "x"):
        (run_folder / name).mkdir()
    assert oc.steps(run_folder) == [1, 2]


def test_a_full_disk_is_reported_before_anything_is_written(run_folder, make_document, monkeypatch):
    monkeypatch.setattr(_commit, "_free", lambda root: 1000)
    with pytest.raises(oc.CheckpointWriteError, match=r"needs \d+ bytes, .* 1000 free") as caught:
        commit(run_folder, make_document(3))
    assert caught.value.free == 1000
    assert caught.value.needed > 60_000
    assert names(run_folder) == [".lock", "step-00000001", "step-00000002"]


@pytest.mark.parametrize("step", [-1, 1.0, True, "3", None, 10**18 + 1])
def test_steps_that_are_no_steps_are_refused(tmp_path, make_document, step):
    with pytest.raises(ValueError, match=r"step is .*; it must be an integer from 0 to 10\*\*18"):
        commit(tmp_path, Document(step, {}, {}, {}))


@pytest.mark.parametrize("keep", [0, -1, True, 1.5, "2"])
def test_keep_is_checked(tmp_path, make_document, keep):
    with pytest.raises(ValueError, match=r"keep is .*; it must be None or an integer"):
        commit(tmp_path, make_document(1), Options(keep=keep))


def test_the_largest_step_fits(tmp_path, make_document, load):
    commit(tmp_path, Document(10**18, {}, {}, make_document(1).parts))
    assert load(tmp_path).step == 10**18


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 2000])
def test_names_that_no_reader_accepts_are_not_written(tmp_path, name):
    entry = Entry(name, "U8", (1,), lambda: memoryview(b"a"))
    with pytest.raises(oc.UnsupportedStateError, match="a name must have 1 to 1024 bytes"):
        commit(tmp_path, Document(1, {}, {}, {"model": [entry]}))
    assert oc.steps(tmp_path) == []


def test_an_array_that_changed_size_is_not_written(tmp_path):
    entry = Entry("x", "U8", (4,), lambda: memoryview(b"abc"))
    with pytest.raises(oc.UnsupportedStateError, match="holds 3 bytes, 4 were announced"):
        commit(tmp_path, Document(1, {}, {}, {"model": [entry]}))
    assert names(tmp_path) == [".lock"]


def test_tensors_are_aligned_and_sorted(run_folder):
    raw = (run_folder / "step-00000001" / "model" / "model.safetensors").read_bytes()
    header = oc._header.parse_header(
        raw[: 8 + int.from_bytes(raw[:8], "little")], len(raw), "model"
    )
    assert header.data_start % 64 == 0
    for info in header.tensors.values():
        if info.nbytes % 64 == 0:
            assert info.begin % 64 == 0


def test_only_one_file_touches_the_disk():
    calls = re.compile(
        r"\bos\.(write|rename|replace|unlink|remove|rmdir|mkdir|makedirs|fsync|truncate|link|"
        r"symlink|pwrite|posix_fallocate)\(|shutil\.|\.write_(bytes|text)\(|\.unlink\(|open\("
    )
    found = {
        (path.name, line.strip())
        for path in Path(oc.__file__).parent.rglob("*.py")
        for line in path.read_text().splitlines()
        # What `migrate` writes are files of other tools, and no steps.
        if calls.search(line) and path.name != "_fs.py" and path.parent.name != "migrate"
    }
    # The lock is the one file that is opened to write elsewhere; nothing is written to it.
    assert {name for name, _ in found} == {"_folder.py", "_reading.py"}
    assert all("os.open(" in line for _, line in found)


@pytest.mark.parametrize("statement", ["import optim_checkpoint", "import optim_checkpoint.cli"])
def test_neither_framework_is_loaded(statement):
    code = (
        f"{statement}, sys; "
        "print(sorted({'torch', 'jax', 'optax', 'pickle5'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
