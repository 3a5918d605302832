"""Several writers, here threads: a fault at every call of every one of them loses nothing."""

import errno
import os
import re
import shutil
import threading
from pathlib import Path

import numpy as np
import optim_checkpoint as oc
import pytest
from optim_checkpoint import _fs
from optim_checkpoint._background import BackgroundCheckpointer
from optim_checkpoint._boxes import whole
from optim_checkpoint._collect import Collector
from optim_checkpoint._commit import Document, commit
from optim_checkpoint._errors import CheckpointWriteError
from optim_checkpoint._files import ShardEntry
from optim_checkpoint._folder import parse_name
from optim_checkpoint._generation import Generation
from optim_checkpoint._options import Options
from optim_checkpoint._peers import Team
from optim_checkpoint._select import choose
from optim_checkpoint._shard import Entry
from optim_checkpoint._together import save_together

RANKS = 3
WHOLE = (7, 2)


class Group:
    """Threads that exchange messages as processes do."""

    def __init__(self, size=RANKS):
        self.size = size
        self.barrier = threading.Barrier(size, timeout=30)
        self.messages = [b""] * size

    def exchange(self, rank, message):
        self.messages[rank] = message
        try:
            self.barrier.wait()
            answers = list(self.messages)
            self.barrier.wait()
        except threading.BrokenBarrierError:
            raise RuntimeError("somebody is gone") from None
        return answers


class Member:
    def __init__(self, group, rank):
        self.group, self.rank, self.size = group, rank, group.size

    def exchange(self, message):
        return self.group.exchange(self.rank, message)

    gather = exchange


def values(step):
    return np.random.default_rng(step).standard_normal(WHOLE).astype(np.float32)


def document(step, rank, changes):
    """Return what a rank has: rows of one tensor, a replicated one, and a number of its own."""
    bounds = [0, 3, 6, 7]
    rows = np.ascontiguousarray(values(step)[bounds[rank] : bounds[rank + 1]])
    shared = values(step + 100)
    entries = [
        ShardEntry(
            "t", "F32", rows.shape, lambda: memoryview(rows).cast("B"), (bounds[rank], 0), WHOLE
        ),
        Entry("shared", "F32", WHOLE, lambda: memoryview(shared).cast("B")),
    ]
    found = {
        "step": step,
        "framework": {"name": "numpy", "versions": {}},
        "sections": {"train": {"extra": {"int": str(step)}}},
        "parts": {"model": entries, "optim": [], "train": []},
        "own": {"rank": rank},
    }
    return Document(**{**found, **changes})


def save(
    folder, step, *, changes=None, gone=None, keep=None, replace=False, limit=10**9, limits=None
):
    """Save from all ranks; return the path or the error of each."""
    group = Group()
    results = [None] * RANKS

    def run(rank):
        try:
            team = Team(Member(group, rank), f"saving step {step}", CheckpointWriteError)
            found = document(step, rank, (changes or {}).get(rank, {}))
            if gone == rank:
                group.barrier.abort()
                return
            results[rank] = save_together(
                folder,
                lambda: found,
                team,
                Options(keep=keep, replace=replace, max_shard_size=(limits or {}).get(rank, limit)),
            )
        except BaseException as error:  # noqa: BLE001 - what each raised is compared
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(RANKS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def load(folder, step):
    """Return both tensors of a step, every bit verified."""
    found = {}
    with (
        _fs.opened(_fs.open_folder(folder)) as root,
        Generation(root, parse_name(f"step-{step:08d}")) as generation,
    ):
        for key, info in generation.tensors("model").items():
            found[key] = np.empty(info.shape, np.float32)
        generation.read(
            lambda part, key, info: [whole(found[key].view(np.uint8).reshape(-1), WHOLE, 4)]
        )
    return found


def assert_is(folder, step):
    found = load(folder, step)
    assert (found["t"] == values(step)).all()
    assert (found["shared"] == values(step + 100)).all()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


class Counting(_fs.FileOps):
    """Counts the calls of all threads and makes one of them fail."""

    def __init__(self, number=None):
        self.count = 0
        self.number = number
        self.lock = threading.Lock()

    def _step(self):
        with self.lock:
            self.count += 1
            if self.count == self.number:
                raise OSError(5, "Input/output error")


def counted(name):
    def call(self, *arguments):
        self._step()
        return getattr(_fs.FileOps, name)(self, *arguments)

    return call


CALLS = ["make_folder", "create", "allocate", "write", "sync", "close", "rename"]
for call in CALLS:
    setattr(Counting, call, counted(call))


def test_all_return_the_path_of_one_generation(tmp_path):
    paths = save(tmp_path, 1)
    assert paths == [tmp_path / "step-00000001"] * RANKS
    assert_is(tmp_path, 1)
    report = oc.verify(tmp_path)
    assert (report.files, report.tensors) == (3, 2)
    assert names(tmp_path) == [".lock", "step-00000001"]


def test_the_replicated_tensor_is_in_one_file_and_each_rank_keeps_its_own(tmp_path):
    save(tmp_path, 1)
    with (
        _fs.opened(_fs.open_folder(tmp_path)) as root,
        Generation(root, parse_name("step-00000001")) as generation,
    ):
        assert [sorted(f.tensors) for f in generation.files] == [
            ["shared", "t"],
            ["t"],
            ["t"],
        ]
        train = generation.manifest.sections["train"]
        assert train["ranks"] == [{"rank": 0}, {"rank": 1}, {"rank": 2}]


def test_equal_state_gives_equal_bytes(tmp_path):
    for run in ("a", "b"):
        save(tmp_path / run, 1)
    files = [p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file()]
    assert len(files) == 5
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_fault_at_every_call_of_every_rank_is_an_error_in_all(tmp_path, monkeypatch):
    save(tmp_path, 1)
    counter = Counting()
    monkeypatch.setattr(_fs, "ops", counter)
    (tmp_path / "other").mkdir()
    save(tmp_path / "other", 2)
    monkeypatch.setattr(_fs, "ops", _fs.FileOps())
    oc.verify(tmp_path / "other", 2)
    shutil.rmtree(tmp_path / "other")
    assert counter.count >= 30
    for number in range(1, counter.count + 1):
        monkeypatch.setattr(_fs, "ops", Counting(number))
        results = save(tmp_path, 2)
        monkeypatch.setattr(_fs, "ops", _fs.FileOps())
        assert all(isinstance(result, CheckpointWriteError) for result in results), results
        assert all("EIO" in str(result) for result in results), results
        assert sum("(process" in str(result) for result in results) == RANKS - 1
        assert names(tmp_path) == [".lock", "step-00000001"], number
        assert_is(tmp_path, 1)
    save(tmp_path, 2)
    assert_is(tmp_path, 2)


@pytest.mark.parametrize("gone", range(RANKS))
def test_a_rank_that_is_gone_is_an_error_in_the_others(tmp_path, gone):
    commit(tmp_path, document(1, 0, {"parts": {"model": document(1, 0, {}).parts["model"][1:]}}))
    results = save(tmp_path, 2, gone=gone)
    for rank, result in enumerate(results):
        if rank != gone:
            assert isinstance(result, CheckpointWriteError)
            assert f"process {rank} of 3 cannot reach the others" in str(result)
    assert names(tmp_path) == [".lock", "step-00000001"]


def test_a_rank_that_leaves_after_the_commit_is_told_apart(tmp_path):
    group = Group()
    real = group.exchange
    calls = []

    def leave(rank, message):
        calls.append(rank)
        if b'"generation"' in message:
            group.barrier.abort()
            raise RuntimeError("gone at the end")
        return real(rank, message)

    group.exchange = leave
    errors = []

    def run(rank):
        team = Team(Member(group, rank), "saving step 5", CheckpointWriteError)
        found = document(5, rank, {})
        try:
            save_together(
                tmp_path,
                lambda: found,
                team,
                Options(keep=None, replace=False, max_shard_size=10**9),
            )
        except CheckpointWriteError as error:
            errors.append((rank, str(error)))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(RANKS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    texts = dict(errors)
    assert sorted(texts) == [0, 1, 2]
    assert texts[0].startswith(f"step 5 is committed in {tmp_path}, but: saving step 5: process 0")
    assert_is(tmp_path, 5)


def shard(rows, offset, shape=WHOLE, dtype="F32", data=b""):
    size = (rows, 2)
    return ShardEntry("t", dtype, size, lambda: memoryview(data), (offset, 0), shape)


ZEROS = Entry("shared", "F32", WHOLE, lambda: memoryview(bytes(56)))
REFUSED = {
    "overlap": ({1: {"parts": {"model": [shard(4, 2)]}}}, "its shards overlap at 2"),
    "hole": ({1: {"parts": {"model": []}}}, "its shards leave a hole at 3"),
    "dtype": ({1: {"parts": {"model": [shard(3, 3, dtype="I32")]}}}, "do not agree on its shape"),
    "whole": ({1: {"parts": {"model": [shard(3, 3, (9, 2))]}}}, "do not agree on its shape"),
    "whole and sharded": (
        {1: {"parts": {"model": [Entry("t", "F32", (3, 2), lambda: memoryview(b""))]}}},
        "cannot be stored",
    ),
    "shape of a replica": (
        {2: {"parts": {"model": [Entry("shared", "F32", (1,), lambda: memoryview(b"1234"))]}}},
        r"shared: is \('F32', \(7, 2\)\) in process 0, \('F32', \(1,\)\) in 2",
    ),
    "value of a replica": (
        {2: {"parts": {"model": [shard(1, 6, data=bytes(8)), ZEROS]}}},
        "process 0 and process 2 hold different values",
    ),
    "section": (
        {1: {"sections": {"train": {"extra": {"int": "9"}}}}},
        r"train\.extra: process 0 and process 1 differ here; what is not sharded",
    ),
    "sections": (
        {1: {"sections": {"train": {"extra": {"int": "9"}, "more": 1}}}},
        "differ here and in 1 more places",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_ranks_do_not_agree_on_is_refused_by_all(tmp_path, case):
    changes, message = REFUSED[case]
    for result in save(tmp_path / "run", 1, changes=changes):
        assert isinstance(result, oc.UnsupportedStateError), result
        assert re.search(message, str(result)), str(result)
    assert oc.steps(tmp_path / "run") == []


def test_a_shard_that_two_take_for_theirs_is_written_once(tmp_path):
    """As where a tensor is sharded in groups of processes of which none knows the others."""
    rows = values(1)
    whole = ShardEntry("t", "F32", (7, 2), lambda: memoryview(rows).cast("B"), (0, 0), (7, 2))
    parts = {"parts": {"model": [whole]}}
    paths = save(tmp_path, 1, changes=dict.fromkeys(range(RANKS), parts))
    assert paths == [tmp_path / "step-00000001"] * RANKS
    assert oc.verify(tmp_path).files == 1


def test_overlaps_that_a_hole_makes_up_for_are_found_before_the_commit(tmp_path):
    moved = ShardEntry("t", "F32", (3, 2), lambda: memoryview(bytes(24)), (2, 0), (7, 2))
    shared = Entry("shared", "F32", (7, 2), lambda: memoryview(values(101)).cast("B"))
    for result in save(tmp_path, 1, changes={1: {"parts": {"model": [moved, shared]}}}):
        assert isinstance(result, CheckpointWriteError), result
        assert "cannot be read back" in str(result)
        assert "its shards overlap at 2 along dimension 0" in str(result)
    assert names(tmp_path) == [".lock"]


def test_another_dtype_in_one_process_is_found_before_the_commit(tmp_path):
    other = ShardEntry("t", "I32", (3, 2), lambda: memoryview(bytes(24)), (3, 0), (7, 2))
    shared = Entry("shared", "F32", (7, 2), lambda: memoryview(values(101)).cast("B"))
    for result in save(tmp_path, 1, changes={1: {"parts": {"model": [other, shared]}}}):
        assert isinstance(result, CheckpointWriteError), result
        assert "cannot be read back" in str(result)
    assert names(tmp_path) == [".lock"]


def test_keep_and_replace_hold_for_all(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step, keep=2)
    assert oc.steps(tmp_path) == [2, 3]
    for result in save(tmp_path, 3):
        assert isinstance(result, oc.CheckpointExistsError)
    assert save(tmp_path, 3, replace=True) == [tmp_path / "step-00000003.g1"] * RANKS


def test_the_lock_of_another_writer_is_an_error_in_all(tmp_path):
    from optim_checkpoint._folder import locked

    with _fs.opened(_fs.open_folder(tmp_path)) as root, locked(root, tmp_path):
        for result in save(tmp_path, 1):
            assert isinstance(result, CheckpointWriteError)
            assert "another writer holds" in str(result)


def test_bad_arguments_are_errors_in_all(tmp_path):
    results = save(tmp_path, 1, limit=10**9, changes={r: {"step": 7} for r in (0, 1)})
    for result in results:
        assert isinstance(result, CheckpointWriteError)
        assert str(result) == "the processes save with different step: [7, 7, 1]"
    for result in save(tmp_path, 1, limits={2: 5}):
        assert isinstance(result, CheckpointWriteError)
        assert "save with different max_shard_size: [1000000000, 1000000000, 5]" in str(result)
    assert oc.steps(tmp_path) == []


def test_a_document_with_shards_is_not_saved_alone(tmp_path):
    with pytest.raises(oc.UnsupportedStateError, match="t: is spread over processes"):
        commit(tmp_path, document(1, 0, {}))


def test_a_shard_that_nobody_holds_is_not_saved_as_if_it_were_there(tmp_path):
    """An uneven mesh gives a process no row, and a group may miss the processes that have them."""
    collector = Collector()
    collector.add_shards("far", "F32", (1, 2), [])
    alone = Document(1, {}, {}, {"train": collector.entries}, shards={"train": collector.shards})
    with pytest.raises(oc.UnsupportedStateError, match="far: is spread over processes"):
        commit(tmp_path, alone)
    with (
        BackgroundCheckpointer(tmp_path) as checkpointer,
        pytest.raises(oc.UnsupportedStateError, match="far: is spread over processes"),
    ):
        checkpointer._submit(alone)
    for result in save(tmp_path, 1, changes={2: {"shards": {"train": {"far": (1, 2)}}}}):
        assert isinstance(result, oc.UnsupportedStateError), result
        assert str(result).startswith("far: cannot be stored: none of the processes that save")
    assert oc.steps(tmp_path) == []


def test_large_parts_are_split_in_every_rank(tmp_path):
    save(tmp_path, 1, limit=40)
    assert_is(tmp_path, 1)
    assert oc.verify(tmp_path).files == 4


class Recording(_fs.FileOps):
    """Records what is not durable yet, as paths."""

    def __init__(self):
        self.loose = set()
        self.at_rename = None
        self.lock = threading.Lock()

    @staticmethod
    def _path(fd, name=""):
        return str(Path(f"/proc/self/fd/{fd}").readlink() / name)

    def make_folder(self, name, folder):
        super().make_folder(name, folder)
        with self.lock:
            self.loose.add(("name", self._path(folder, name)))

    def create(self, name, folder):
        fd = super().create(name, folder)
        with self.lock:
            self.loose |= {("name", self._path(folder, name)), ("data", self._path(fd))}
        return fd

    def write(self, fd, data):
        with self.lock:
            self.loose.add(("data", self._path(fd)))
        return super().write(fd, data)

    def sync(self, fd):
        super().sync(fd)
        path = self._path(fd)
        with self.lock:
            self.loose = {
                (kind, name)
                for kind, name in self.loose
                if not (kind == "data" and name == path)
                and not (kind == "name" and name.rpartition("/")[0] == path)
            }

    def rename(self, old, new, folder):
        # The temporary folder's own name is replaced: it needs no sync.
        self.loose.discard(("name", self._path(folder, old)))
        self.at_rename = set(self.loose)
        super().rename(old, new, folder)
        with self.lock:
            self.loose.add(("name", self._path(folder, new)))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="paths are read from /proc")
def test_everything_is_durable_before_the_commit_and_the_commit_before_the_return(
    tmp_path, monkeypatch
):
    recording = Recording()
    monkeypatch.setattr(_fs, "ops", recording)
    save(tmp_path, 1)
    assert recording.at_rename == set()
    assert recording.loose == set()


def choose_together(folders):
    """Let every rank choose the newest step of its folder; return what each got or raised."""
    group = Group()
    results = [None] * RANKS

    def run(rank):
        team = Team(Member(group, rank), "restoring", oc.CheckpointError)
        try:
            chosen = choose(folders[rank], None, lambda generation: generation.read(sink), team)
            results[rank] = chosen.step
        except oc.CheckpointError as error:
            results[rank] = error

    def sink(part, key, info):
        return None

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(RANKS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_ranks_that_see_different_generations_under_one_name_restore_none(tmp_path):
    """One name, two contents: disks that are not shared, or a step retired and saved again."""
    for folder, number in (("here", 1), ("there", 2)):
        value = np.full(4, number, np.float32)
        entry = Entry("x", "F32", (4,), lambda value=value: memoryview(value).cast("B"))
        commit(tmp_path / folder, Document(5, {}, {}, {"model": [entry]}))
    assert choose_together([tmp_path / "here"] * RANKS) == [5] * RANKS
    results = choose_together([tmp_path / name for name in ("here", "here", "there")])
    assert [type(result) for result in results] == [oc.CorruptCheckpointError] * RANKS
    assert len({str(result) for result in results}) == 1
    assert re.search(
        r"step-00000005: is [0-9a-f]{32} for process 0 and [0-9a-f]{32} for process 2: all "
        r"processes need one file system",
        str(results[0]),
    )


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES], ids=errno.errorcode.get)
def test_what_one_rank_cannot_read_is_an_error_in_all(run_folder, monkeypatch, code):
    read, refused = os.preadv, []

    def preadv(fd, buffers, offset):
        refused.append(threading.get_ident())
        if refused[0] == threading.get_ident():
            raise OSError(code, "no luck")
        return read(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    results = choose_together([run_folder] * RANKS)
    assert [type(result) for result in results] == [oc.CheckpointReadError] * RANKS
    assert {result.errno for result in results} == {code}
    assert all("step-00000002/" in result.filename for result in results)
    assert sorted("(process" in str(result) for result in results) == [False, True, True]
