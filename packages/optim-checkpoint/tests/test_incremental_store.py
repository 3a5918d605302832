"""Incremental saves to a store: what did not change is named where it is, and stays as long."""

import tempfile

import numpy as np
import optim_checkpoint as oc
import pytest
from optim_checkpoint import _commits, _incremental, _place, _proof, _remote, _store
from optim_checkpoint._commit import Document
from optim_checkpoint._options import Options
from optim_checkpoint._shard import Entry
from optim_conformance.object_store import BUCKETS, Bucket

URL = "faulty://incremental/run"
SIZE = 4096
COUNT = 100


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    monkeypatch.setattr(_store, "PAUSES", (0, 0, 0))
    monkeypatch.setattr(_incremental, "LEAST", 4 * SIZE)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    BUCKETS["incremental"] = Bucket()
    forget()
    return BUCKETS["incremental"]


def forget():
    """Know as little as a new process."""
    _store._conditional.clear()
    _commits._seen.clear()
    for known in (_remote._sound, _remote._suspect, _remote._saved, _proof._found):
        known.clear()


def arrays(step):
    found = {f"t{i:03d}": np.full(SIZE, i, np.float32) for i in range(COUNT)}
    found["t000"] += step
    return found


def save(step, of=None, url=URL, **options):
    entries = [
        Entry(name, "F32", a.shape, lambda a=a: memoryview(a))
        for name, a in arrays(step if of is None else of).items()
    ]
    made = Document(step, {"name": "numpy", "versions": {}}, {}, {"model": entries})
    return _place.commit(url, made, Options(incremental=True, **options))


def save_another(step):
    """Save in full a state that has nothing in common with the others."""
    entry = Entry("x", "U8", (1,), lambda: memoryview(b"x"))
    made = Document(step, {"name": "numpy", "versions": {}}, {}, {"model": [entry]})
    _place.commit(URL, made, Options())


def head():
    return _commits.newest(_store.open_store(URL))


def shared_object(bucket):
    """Return an object that the newest step shares with one before."""
    key = min(head().generations[head().names[-1]].shared.values())
    return next(name for name in bucket.objects if name.endswith(key))


def objects(bucket):
    """Return the objects of steps, without the place of the run."""
    return {key.partition("run/")[2] for key in bucket.objects if "/step-" in key}


def check(load, step):
    found = load(URL, step).value
    for name, array in arrays(step).items():
        assert found[name].tobytes() == array.tobytes()


@pytest.mark.parametrize("fresh", [False, True])
def test_one_changing_tensor_of_a_hundred_is_what_is_put(bucket, load, fresh):
    total = sum(array.nbytes for array in arrays(0).values())
    for step in range(1, 5):
        if fresh:
            forget()
        before = bucket.written
        save(step, keep=2)
        if step > 1:
            assert total / 100 < bucket.written - before < total / 20
        assert oc.verify(URL).tensors == COUNT
        check(load, step)
    assert oc.steps(URL) == [3, 4]
    check(load, 3)
    # What no step has is gone, and of the first step there is what the others have of it.
    assert objects(bucket) == head().keys
    assert any(key.startswith("step-00000001-") for key in head().keys)


def test_the_outline_of_a_step_of_this_process_is_not_read(bucket):
    save(1)
    before = bucket.calls
    save(2)
    known = bucket.calls - before
    forget()
    before = bucket.calls
    save(3)
    assert bucket.calls - before > known + COUNT


def test_memory_works_as_every_store(bucket):
    url = "memory://incremental/run"
    for step in (1, 2, 3):
        save(step, url=url, keep=1)
        assert oc.verify(url).step == step


def test_objects_go_with_the_last_step_that_has_them(bucket):
    for step in (1, 2):
        save(step)
    oc.pin(URL, 1, "a reason")
    save(3, keep=1)
    assert oc.steps(URL) == [1, 3]
    assert oc.verify(URL, 1).tensors == COUNT
    oc.unpin(URL, 1)
    save(4, keep=1)
    # A full save lets go of everything older.
    entry = Entry("x", "U8", (1,), lambda: memoryview(b"x"))
    made = Document(5, {"name": "numpy", "versions": {}}, {}, {"model": [entry]})
    _place.commit(URL, made, Options(keep=1))
    assert objects(bucket) == head().keys
    assert {key.partition("-")[2][:8] for key in head().keys} == {"00000005"}


def test_of_a_save_and_a_removal_the_first_to_commit_wins(bucket, load, monkeypatch):
    save(1)
    save(2)
    change = _commits.change
    entry = Entry("x", "U8", (1,), lambda: memoryview(b"x"))
    other = Document(3, {"name": "numpy", "versions": {}}, {}, {"model": [entry]})

    def removes_first(store, edit):
        monkeypatch.setattr(_remote, "change", change)
        _place.commit(URL, other, Options(keep=1))
        return change(store, edit)

    monkeypatch.setattr(_remote, "change", removes_first)
    with pytest.raises(oc.CheckpointWriteError, match="another writer saved"):
        save(4)
    assert oc.steps(URL) == [3]
    assert objects(bucket) == head().keys

    save(5)

    def names_first(store, edit):
        monkeypatch.setattr(_remote, "change", change)
        save(6, of=5)
        return change(store, edit)

    monkeypatch.setattr(_remote, "change", names_first)
    with pytest.raises(oc.CheckpointWriteError, match="another writer saved"):
        _place.commit(URL, Document(7, {}, {}, other.parts), Options(keep=1))
    assert oc.steps(URL) == [3, 5, 6]
    assert head().generations[head().names[-1]].shared
    for step in oc.steps(URL):
        oc.verify(URL, step)


def test_a_removal_that_is_late_spares_what_is_named_meanwhile(bucket, monkeypatch):
    save(1)
    names = _store.Store.names

    def names_after_a_save(store):
        monkeypatch.setattr(_store.Store, "names", names)
        save(3, keep=1)
        return names(store)

    monkeypatch.setattr(_store.Store, "names", names_after_a_save)
    save(2, keep=1)
    assert oc.steps(URL) == [3]
    assert oc.verify(URL).tensors == COUNT


def test_damage_in_a_shared_object_is_seen_by_every_step_of_it(bucket, load):
    for step in (1, 2, 3):
        save(step)
    full = shared_object(bucket)
    raw = bucket.objects[full]
    bucket.objects[full] = raw[:-1] + bytes([raw[-1] ^ 1])
    for step, others in ((1, "2, 3"), (2, "1, 3"), (3, "1, 2")):
        with pytest.raises(oc.CorruptCheckpointError, match=f"also a file of the steps {others}$"):
            oc.verify(URL, step)
    # This process knows of it, and names none of these objects any more.
    save(4, keep=1)
    assert not head().generations[head().names[-1]].shared
    assert oc.steps(URL) == [4]
    check(load, 4)


@pytest.mark.parametrize("fresh", [False, True])
def test_an_object_that_is_gone_is_put_again(bucket, load, fresh):
    save_another(0)
    save(1)
    save(2)
    del bucket.objects[shared_object(bucket)]
    if fresh:
        forget()
    save(3, keep=2)
    assert not head().generations[head().names[-1]].shared
    check(load, 3)
    # Neither of those that lack it counts as sound.
    assert {0, 3} <= {*oc.steps(URL)}


def test_what_shares_a_damaged_object_does_not_count_as_sound(bucket):
    save_another(0)
    for step in (1, 2):
        save(step)
    full = shared_object(bucket)
    bucket.objects[full] = bucket.objects[full][:-1] + b"!"
    with pytest.raises(oc.CorruptCheckpointError, match="also a file of the steps 1"):
        oc.verify(URL)
    save(3, keep=2)
    assert {0, 3} <= {*oc.steps(URL)}


def test_a_reader_that_knows_no_shared_objects_refuses_the_run(bucket, monkeypatch):
    save(1)
    monkeypatch.setattr(_commits, "VERSIONS", (1,))
    assert oc.steps(URL) == [1]
    monkeypatch.undo()
    save(2)
    monkeypatch.setattr(_commits, "VERSIONS", (1,))
    with pytest.raises(oc.CheckpointError, match="version 2, this reader has 1"):
        oc.steps(URL)


def test_the_list_of_steps_says_what_is_shared(bucket, capsys, monkeypatch):
    from optim_checkpoint import cli

    monkeypatch.setattr("sys.argv", ["optim-checkpoint", "ls", URL])
    for step in (1, 2):
        save(step)
        with pytest.raises(SystemExit):
            cli.main()
        rows = capsys.readouterr().out.splitlines()
        assert "shared" in rows[0]
        # The size, and where there is a second step the shared part of it.
        assert rows[1].count("1.6 MiB") == step
