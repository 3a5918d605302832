"""Incremental saves: what did not change is linked, and every step stays whole by itself."""

import dataclasses
import errno
import os
import resource

import numpy as np
import optim_checkpoint as oc
import pytest
import safetensors.numpy
from optim_checkpoint import _fs, _incremental, _proof, _retention
from optim_checkpoint._commit import Document, commit
from optim_checkpoint._folder import GenerationName
from optim_checkpoint._numpy import bytes_of, dtype_name
from optim_checkpoint._options import Options
from optim_checkpoint._peers import alone
from optim_checkpoint._shard import Entry
from optim_checkpoint._together import save_together

INCREMENTAL = Options(incremental=True)
SIZE = 4096


class CountingOps(_fs.FileOps):
    """Counts what is written and linked; with `refusal` no file can be linked."""

    def __init__(self, refusal=None):
        self.written = self.links = 0
        self.refusal = refusal

    def write(self, fd, data):
        count = super().write(fd, data)
        self.written += count
        return count

    def link(self, *arguments):
        if self.refusal is not None:
            raise OSError(self.refusal, os.strerror(self.refusal))
        self.links += 1
        super().link(*arguments)


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    monkeypatch.setattr(_incremental, "LEAST", 4 * SIZE)
    monkeypatch.setattr(_incremental, "_warned", set())


@pytest.fixture
def ops(monkeypatch):
    counting = CountingOps()
    monkeypatch.setattr(_fs, "ops", counting)
    return counting


def arrays(step, count=100):
    """Return equal tensors, of which the first changes with the step."""
    found = {f"t{i:03d}": np.full(SIZE, i, np.float32) for i in range(count)}
    found["t000"] += step
    return found


def document(step, tensors, part="model"):
    entries = [
        Entry(name, dtype_name(a.dtype, name), a.shape, lambda a=a: bytes_of(a))
        for name, a in tensors.items()
    ]
    return Document(step, {"name": "numpy", "versions": {}}, {}, {part: entries})


def save(folder, step, tensors=None, **options):
    made = document(step, arrays(step) if tensors is None else tensors)
    return commit(folder, made, Options(incremental=True, **options))


def files_of(path):
    return sorted(path.glob("*/*.safetensors"))


def assert_holds(path, tensors):
    """Assert that every file of a step opens by itself, and all of them hold these tensors."""
    found = [safetensors.numpy.load_file(file) for file in files_of(path)]
    assert sum(map(len, found)) == len(tensors)
    merged = {name: array for each in found for name, array in each.items()}
    assert merged.keys() == tensors.keys()
    for name, array in tensors.items():
        assert merged[name].dtype == array.dtype
        assert merged[name].tobytes() == array.tobytes()


def forget():
    """Know as little as a new process."""
    _proof._found.clear()


@pytest.mark.parametrize("keep", [None, 1, 2])
def test_one_changing_tensor_of_a_hundred_is_what_is_written(memory_path, ops, keep):
    total = sum(array.nbytes for array in arrays(0).values())
    for step in range(1, 6):
        ops.written = ops.links = 0
        path = save(memory_path, step, keep=keep)
        if step > 1:
            assert ops.links > 20
            assert total / 100 < ops.written < total / 20
        assert oc.verify(memory_path, step).tensors == 100
        assert_holds(path, arrays(step))
    for step in oc.steps(memory_path):
        assert oc.verify(memory_path, step).step == step


def test_the_same_state_is_linked_as_a_whole(memory_path, ops):
    save(memory_path, 1)
    ops.written = 0
    path = save(memory_path, 2, arrays(1), keep=1)
    assert ops.written == (path / "manifest.json").stat().st_size + sum(
        index.stat().st_size for index in path.glob("*/*.index.json")
    )
    assert_holds(path, arrays(1))


def recast(tensors):
    tensors["t005"] = tensors["t005"].view(np.int32)


def reshaped(tensors):
    tensors["t005"] = tensors["t005"].reshape(2, -1)


def renamed(tensors):
    tensors["other"] = tensors.pop("t005")


def swapped(tensors):
    tensors["t005"], tensors["t006"] = tensors["t006"], tensors["t005"]


def flipped(tensors):
    tensors["t005"].view(np.uint8)[0] ^= 1


def removed(tensors):
    del tensors["t005"]


def added(tensors):
    tensors["t200"] = np.arange(3.0)


CHANGES = (recast, reshaped, renamed, swapped, flipped, removed, added)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_is_not_the_same_tensor_is_written(memory_path, ops, change):
    save(memory_path, 1)
    tensors = arrays(1)
    change(tensors)
    path = save(memory_path, 2, tensors)
    assert ops.links > 20
    assert_holds(path, tensors)
    assert oc.verify(memory_path).tensors == len(tensors)


def test_a_tensor_that_moves_to_another_part_is_written(memory_path, ops):
    commit(memory_path, document(1, arrays(1)), INCREMENTAL)
    path = commit(memory_path, document(2, arrays(1), "optim"), INCREMENTAL)
    assert ops.links == 0
    assert_holds(path, arrays(1))


def test_what_changes_is_parted_from_what_does_not(memory_path, ops, monkeypatch):
    monkeypatch.setattr(_incremental, "LEAST", 1 << 20)
    tensors = {f"s{i}": np.full(4, i, np.float32) for i in range(8)}
    frozen = {f"f{i}": np.full(SIZE, i, np.float32) for i in range(8)}
    written = []
    for step in range(1, 5):
        tensors = {name: array + 1 for name, array in tensors.items()}
        before = ops.written
        path = save(memory_path, step, frozen | tensors)
        written.append(ops.written - before)
        assert_holds(path, frozen | tensors)
    nbytes = sum(array.nbytes for array in frozen.values())
    assert min(written[:2]) > nbytes
    assert ops.links
    assert max(written[2:]) < nbytes / 10


def test_small_tensors_do_not_share_a_file_with_large_ones(memory_path, ops):
    tensors = {}
    for i in range(40):
        tensors[f"{i:02d} large"] = np.full(3 * SIZE // 4, i, np.float32)
        tensors[f"{i:02d} small"] = np.full(SIZE // 100, i, np.float32)
    save(memory_path, 1, tensors)
    ops.written = 0
    tensors = {name: a + 1 if name.endswith("small") else a for name, a in tensors.items()}
    path = save(memory_path, 2, tensors)
    assert ops.written < sum(array.nbytes for array in tensors.values()) / 10
    assert_holds(path, tensors)


def test_files_stay_few_where_ever_less_changes(memory_path, monkeypatch):
    monkeypatch.setattr(_incremental, "MOST_LINKED", 8)
    monkeypatch.setattr(_incremental, "LEAST", 1 << 20)
    tensors = {f"t{i:02d}": np.zeros(64, np.float32) for i in range(40)}
    for step in range(40):
        for name in sorted(tensors)[step:]:
            tensors[name] = tensors[name] + 1
        path = save(memory_path, step, tensors, keep=1)
        assert len(files_of(path)) <= 8 + 2
        assert_holds(path, tensors)


def test_a_damaged_file_is_never_linked(memory_path, ops):
    first = save(memory_path, 1)
    damaged = files_of(first)[-1]
    raw = bytearray(damaged.read_bytes())
    raw[-1] ^= 1
    damaged.write_bytes(raw)
    with pytest.warns(oc.CheckpointWarning, match="an earlier step is damaged: step-00000001"):
        path = save(memory_path, 2, arrays(1))
    assert ops.links > 20
    assert_holds(path, arrays(1))
    assert oc.verify(memory_path, 2).tensors == 100
    # The damaged one counts no more: two sound ones stay beside it, and it goes.
    save(memory_path, 3, arrays(1), keep=2)
    assert oc.steps(memory_path) == [2, 3]


def test_what_another_process_wrote_is_read_before_it_is_linked(memory_path, monkeypatch):
    save(memory_path, 1)
    checked = []
    check = _incremental.Generation.check
    monkeypatch.setattr(
        _incremental.Generation, "check", lambda g, s: (checked.append(s), check(g, s))
    )
    save(memory_path, 2)
    assert not checked
    forget()
    save(memory_path, 3)
    assert len(checked) > 20
    checked.clear()
    save(memory_path, 4, keep=1)
    assert not checked
    os.utime(files_of(memory_path / "step-00000004")[0])
    save(memory_path, 5)
    assert checked


@pytest.mark.parametrize("how", ["flip", "cut"])
def test_damage_in_a_shared_file_is_seen_by_every_step_of_it(memory_path, how):
    paths = [save(memory_path, step) for step in (1, 2, 3)]
    shared = next(file for file in files_of(paths[0]) if file.stat().st_nlink == 3)
    with shared.open("r+b") as file:
        last = file.read()[-1]
        file.seek(-1, os.SEEK_END)
        if how == "cut":
            file.truncate()
        else:
            file.write(bytes([last ^ 1]))
    for step, others in ((1, "2, 3"), (2, "1, 3"), (3, "1, 2")):
        with pytest.raises(oc.CorruptCheckpointError, match=rf"also a file of the steps {others}$"):
            oc.verify(memory_path, step)
    # Each is known to be damaged now: nothing of them is linked.
    path = save(memory_path, 4, arrays(3))
    assert {file.stat().st_nlink for file in files_of(path)} == {1}
    assert oc.verify(memory_path, 4).tensors == 100
    assert_holds(path, arrays(3))


def test_what_is_damaged_after_it_was_linked_is_not_linked_on(memory_path, ops, monkeypatch):
    first = save(memory_path, 1)
    create = CountingOps.create

    def create_late(self, name, folder):
        if name.endswith(".safetensors"):
            damaged = next(file for file in files_of(first) if file.stat().st_nlink == 2)
            damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
        return create(self, name, folder)

    with monkeypatch.context() as patch:
        patch.setattr(CountingOps, "create", create_late)
        save(memory_path, 2)
    with pytest.warns(oc.CheckpointWarning, match="an earlier step is damaged"):
        path = save(memory_path, 3, keep=1)
    assert_holds(path, arrays(3))
    assert oc.verify(memory_path).step == 3


def test_what_is_damaged_as_it_is_linked_is_not_linked_on(memory_path, ops, monkeypatch):
    first = save(memory_path, 1)
    link = CountingOps.link

    def link_damaged(self, old, old_folder, *new):
        damaged = files_of(first)[-1]
        if damaged.name == old:
            damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
        link(self, old, old_folder, *new)

    with monkeypatch.context() as patch:
        patch.setattr(CountingOps, "link", link_damaged)
        save(memory_path, 2)
    with pytest.warns(oc.CheckpointWarning, match="an earlier step is damaged"):
        path = save(memory_path, 3, keep=1)
    assert_holds(path, arrays(3))


def test_a_save_looks_at_no_file_of_the_steps_before_the_last(memory_path, monkeypatch):
    counts = []
    marks = _proof.marks
    monkeypatch.setattr(_proof, "marks", lambda *args: (counts.append(args), marks(*args))[1])
    for step in range(6):
        counts.clear()
        save(memory_path, step)
        if step == 2:
            second = len(counts)
    assert len(counts) == second


def test_known_damage_is_not_forgotten_when_links_come_and_go(memory_path):
    for step in (1, 2, 3):
        save(memory_path, step)
    damaged = files_of(memory_path / "step-00000003")[-1]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    with pytest.raises(oc.CorruptCheckpointError, match=r"was written$"):
        oc.verify(memory_path)
    before = files_of(memory_path / "step-00000003")[0].stat()
    # A file that 3 has too is linked, and loses the link of step 1: both change its ctime.
    save(memory_path, 4, keep=2)
    after = files_of(memory_path / "step-00000003")[0].stat()
    assert after.st_ctime_ns > before.st_ctime_ns
    with _fs.opened(os.open(memory_path, os.O_RDONLY)) as root:
        assert _proof.state_of(root, GenerationName(3)) is _proof.State.DAMAGED
        assert _proof.state_of(root, GenerationName(4)) is _proof.State.WRITTEN


@pytest.mark.parametrize("how", ["by a save", "by verify"])
def test_what_shares_a_damaged_file_does_not_count_as_sound(memory_path, how):
    commit(memory_path, document(0, arrays(0)), Options())
    for step in (1, 2, 3):
        save(memory_path, step)
    forget()
    shared = next(f for f in files_of(memory_path / "step-00000003") if f.stat().st_nlink == 3)
    with shared.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"!")
    if how == "by verify":
        with pytest.raises(oc.CorruptCheckpointError, match="also a file of the steps 1, 2"):
            oc.verify(memory_path)
        save(memory_path, 4, keep=2)
    else:
        with pytest.warns(oc.CheckpointWarning, match="an earlier step is damaged"):
            save(memory_path, 4, arrays(3), keep=2)
    # The only other sound one is the oldest.
    assert {0, 4} <= {*oc.steps(memory_path)}
    assert oc.verify(memory_path, 0).step == 0


@pytest.mark.parametrize("left", [False, True])
def test_known_damage_is_not_forgotten_when_a_save_fails(memory_path, ops, monkeypatch, left):
    for step in (1, 2, 3):
        save(memory_path, step)
    damaged = next(f for f in files_of(memory_path / "step-00000003") if f.stat().st_nlink == 1)
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    with pytest.raises(oc.CorruptCheckpointError, match=r"was written$"):
        oc.verify(memory_path)

    def full(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(ops, "sync", full)
        if left:
            patch.setattr(_fs, "remove_tree", lambda name, folder: None)
        with pytest.raises(oc.CheckpointWriteError, match="ENOSPC"):
            save(memory_path, 4)
    assert ops.links
    assert len([*memory_path.glob(".tmp-*")]) == left
    with _fs.opened(os.open(memory_path, os.O_RDONLY)) as root:
        _retention.sweep(root)
        assert _proof.state_of(root, GenerationName(3)) is _proof.State.DAMAGED


def test_a_linked_file_that_another_process_wrote_is_synced(memory_path, monkeypatch):
    first = save(memory_path, 1)
    forget()
    synced = []
    sync = CountingOps.sync
    monkeypatch.setattr(
        _fs.FileOps, "sync", lambda ops, fd: (synced.append(os.fstat(fd).st_ino), sync(ops, fd))
    )
    path = save(memory_path, 2)
    shared = {f.stat().st_ino for f in files_of(first)} & {f.stat().st_ino for f in files_of(path)}
    assert len(shared) > 20
    # It may have been copied here a moment ago.
    assert shared <= {*synced}


def test_a_file_of_more_than_the_limit_is_not_linked(memory_path):
    commit(memory_path, document(1, arrays(1)), Options())
    path = save(memory_path, 2, arrays(1), max_shard_size=8 * SIZE)
    assert max(file.stat().st_size for file in files_of(path)) < 9 * SIZE
    assert_holds(path, arrays(1))


@pytest.mark.parametrize("other", [False, True])
def test_a_link_that_is_told_to_be_there_is_looked_at(memory_path, ops, monkeypatch, other):
    save(memory_path, 1)
    link = CountingOps.link

    def repeated(self, old, old_folder, new, new_folder):
        if other:
            os.close(os.open(new, os.O_CREAT | os.O_WRONLY, dir_fd=new_folder))
        else:
            link(self, old, old_folder, new, new_folder)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))

    monkeypatch.setattr(CountingOps, "link", repeated)
    path = save(memory_path, 2)
    assert_holds(path, arrays(2))
    assert oc.verify(memory_path).step == 2
    assert any(file.stat().st_nlink == 2 for file in files_of(path)) != other


@pytest.mark.parametrize("number", ["EXDEV", "EMLINK", "EPERM", "EOPNOTSUPP", "ENOENT"])
def test_without_links_a_save_is_in_full_and_says_so_once(memory_path, ops, number):
    save(memory_path, 1)
    ops.refusal = getattr(errno, number)
    with pytest.warns(oc.CheckpointWarning, match=r"cannot be linked \(E\w+: .*written in full"):
        path = save(memory_path, 2)
    assert_holds(path, arrays(2))
    path = save(memory_path, 3, keep=1)
    assert_holds(path, arrays(3))
    assert {file.stat().st_nlink for file in files_of(path)} == {1}


@pytest.mark.parametrize("known", [True, False])
def test_a_step_that_cannot_be_opened_is_told_of(memory_path, ops, known):
    save(memory_path, 1)
    if not known:
        forget()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(memory_path, os.O_RDONLY)
    os.close(lowest)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 20, limits[1]))
        with pytest.warns(oc.CheckpointWarning, match=r"cannot be opened \(EMFILE: .*in full"):
            path = save(memory_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert ops.links == 0
    assert_holds(path, arrays(2))


def test_a_folder_that_cannot_be_listed_hides_no_damage(memory_path, monkeypatch):
    damaged = files_of(save(memory_path, 1))[0]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")

    def unlisted(root, path):
        raise oc.CheckpointReadError(str(path), "cannot be listed", OSError(errno.EIO, "error"))

    monkeypatch.setattr(_proof, "generations", unlisted)
    with pytest.raises(oc.CorruptCheckpointError, match=r"was written$"):
        oc.verify(memory_path)


def test_a_faulty_disk_is_not_taken_for_one_without_links(memory_path, ops):
    save(memory_path, 1)
    ops.refusal = errno.EIO
    with pytest.raises(oc.CheckpointWriteError, match=r"EIO .*earlier steps are untouched"):
        save(memory_path, 2)
    assert oc.verify(memory_path).step == 1


def test_a_file_that_was_exchanged_is_written(memory_path, ops, monkeypatch):
    save(memory_path, 1)
    link = CountingOps.link

    def exchanged(self, old, old_folder, new, new_folder):
        os.rename(old, "aside", src_dir_fd=old_folder, dst_dir_fd=old_folder)
        os.close(os.open(old, os.O_CREAT | os.O_WRONLY, dir_fd=old_folder))
        link(self, old, old_folder, new, new_folder)
        os.rename("aside", old, src_dir_fd=old_folder, dst_dir_fd=old_folder)

    monkeypatch.setattr(CountingOps, "link", exchanged)
    path = save(memory_path, 2)
    assert ops.links > 20
    assert_holds(path, arrays(2))
    assert oc.verify(memory_path).step == 2


def test_a_step_before_that_cannot_be_opened_is_no_obstacle(memory_path, ops):
    save(memory_path, 1)
    save(memory_path, 2)
    (memory_path / "step-00000002" / "manifest.json").write_bytes(b"{}")
    ops.links = 0
    path = save(memory_path, 3)
    assert ops.links > 20
    assert_holds(path, arrays(3))


def test_a_full_save_after_incremental_ones_shares_nothing(memory_path):
    save(memory_path, 1)
    save(memory_path, 2)
    path = commit(memory_path, document(3, arrays(3)), Options())
    assert {file.stat().st_nlink for file in files_of(path)} == {1}
    assert len(files_of(path)) == 1
    # From a step in one file: parted once, then linked.
    save(memory_path, 4)
    path = save(memory_path, 5, keep=1)
    assert sum(file.stat().st_nlink for file in files_of(path)) == len(files_of(path))
    assert_holds(path, arrays(5))


def test_the_room_that_is_asked_for_is_that_of_what_is_written(memory_path, monkeypatch):
    save(memory_path, 1)
    real = os.fstatvfs

    def small(fd):
        status = real(fd)
        blocks = (200 << 10) // status.f_frsize
        return os.statvfs_result([*status[:4], blocks, *status[5:]])

    monkeypatch.setattr(os, "fstatvfs", small)
    save(memory_path, 2)
    with pytest.raises(oc.CheckpointWriteError, match="204800 free"):
        commit(memory_path, document(3, arrays(3)), Options())


def test_several_processes_save_in_full(memory_path):
    with pytest.raises(oc.CheckpointWriteError, match="is for a save by one process"):
        save_together(memory_path, lambda: document(1, arrays(1)), alone(), INCREMENTAL)


def test_an_earlier_step_with_shards_is_not_linked_from(memory_path, ops):
    commit(memory_path, document(1, arrays(1)), INCREMENTAL)
    generation = _incremental.Generation

    class Sharded(generation):
        def __init__(self, *arguments, **keywords):
            super().__init__(*arguments, **keywords)
            self.files = [
                dataclasses.replace(
                    stored,
                    record=dataclasses.replace(
                        stored.record, offsets=dict.fromkeys(stored.tensors, (0,))
                    ),
                )
                for stored in self.files
            ]

    _incremental.Generation = Sharded
    try:
        path = commit(memory_path, document(2, arrays(1)), INCREMENTAL)
    finally:
        _incremental.Generation = generation
    assert ops.links == 0
    assert_holds(path, arrays(1))
