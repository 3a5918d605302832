import itertools
import threading

import numpy as np
import optim_checkpoint as oc
import pytest
from optim_checkpoint import _fs, _parallel, _shard
from optim_checkpoint._commit import commit


@pytest.fixture
def many_batches(monkeypatch):
    """Every tensor is a batch of its own, and there are threads whatever the machine."""
    monkeypatch.setattr(_parallel, "BATCH", 1)
    monkeypatch.setattr(_parallel, "workers", lambda: 3)


def test_every_job_runs_once_and_batches_run_at_the_same_time(many_batches):
    together = threading.Barrier(3, timeout=30)
    done = []
    _parallel.run([(1, lambda i=i: (together.wait(), done.append(i))) for i in range(6)])
    assert sorted(done) == list(range(6))


def test_small_jobs_share_a_batch_in_order(monkeypatch):
    monkeypatch.setattr(_parallel, "BATCH", 100)
    done = []
    _parallel.run([(1, lambda i=i: done.append((i, threading.get_ident()))) for i in range(50)])
    assert done == [(i, threading.get_ident()) for i in range(50)]


def test_the_first_failure_in_order_is_raised(many_batches):
    later_failed = threading.Event()

    def first():
        assert later_failed.wait(30)
        raise KeyError("first")

    def second():
        later_failed.set()
        raise ValueError("second")

    with pytest.raises(KeyError, match="first"):
        _parallel.run([(1, first), (1, second)])


def test_nothing_to_do_is_nothing():
    _parallel.run([])


def test_workers_are_at_least_one_and_at_most_four(monkeypatch):
    assert 1 <= _parallel.workers() <= 4
    monkeypatch.setattr(_parallel.os, "sched_getaffinity", lambda pid: set(range(64)))
    assert _parallel.workers() == 4


def test_threads_read_what_was_written(many_batches, tmp_path, make_document, load, check):
    commit(tmp_path, make_document(1, 3000))
    check(load(tmp_path).value, 1, 3000)


def test_of_two_damaged_tensors_the_first_is_named(many_batches, tmp_path, make_document):
    path = commit(tmp_path, make_document(1)) / "model" / "model.safetensors"
    raw = bytearray(path.read_bytes())
    header = oc._header.parse_header(
        bytes(raw[: 8 + int.from_bytes(raw[:8], "little")]), len(raw), "model"
    )
    damaged = [name for name, info in header.tensors.items() if info.nbytes]
    for name in damaged:
        raw[header.data_start + header.tensors[name].begin] ^= 1
    path.write_bytes(raw)
    for _ in range(20):
        with pytest.raises(oc.CorruptCheckpointError) as caught:
            oc.verify(tmp_path)
        assert caught.value.tensor == damaged[0]


def test_write_back_starts_early_and_once_for_every_byte(
    tmp_path, make_document, load, check, monkeypatch
):
    ranges = []

    class Watched(_fs.FileOps):
        def start_writeback(self, fd, start, size):
            ranges.append((start, size))
            super().start_writeback(fd, start, size)

    monkeypatch.setattr(_fs, "ops", Watched())
    monkeypatch.setattr(_shard, "CHUNK", 1000)
    monkeypatch.setattr(_shard, "WRITEBACK", 4000)
    path = commit(tmp_path, make_document(1, 3000)) / "model" / "model.safetensors"
    check(load(tmp_path).value, 1, 3000)
    model = ranges[: next((i for i in range(1, len(ranges)) if ranges[i][0] < ranges[i - 1][0]), 0)]
    assert len(model) > 5
    for (start, size), (following, _) in itertools.pairwise(model):
        assert start + size == following
        assert 4000 <= size < 5000
    assert path.stat().st_size - sum(model[-1]) < 5000


def test_a_system_that_cannot_write_back_early_saves_all_the_same(
    tmp_path, make_document, load, check, monkeypatch
):
    monkeypatch.setattr(_fs, "_sync_file_range", None)
    monkeypatch.setattr(_shard, "WRITEBACK", 100)
    commit(tmp_path, make_document(1))
    check(load(tmp_path).value, 1)


def test_a_tensor_larger_than_a_chunk_is_read_back(tmp_path, monkeypatch, many_batches, load):
    monkeypatch.setattr(_shard, "CHUNK", 64)
    monkeypatch.setattr(oc._generation, "CHUNK", 96)
    raw = np.random.default_rng(0).bytes(1000)
    entry = _shard.Entry("x", "U8", (1000,), lambda: memoryview(raw))
    commit(tmp_path, oc._commit.Document(1, {}, {}, {"model": [entry]}))
    assert load(tmp_path).value["x"].tobytes() == raw
    assert oc.verify(tmp_path).tensors == 1
