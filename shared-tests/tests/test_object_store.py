"""The faulty store does what it says, and nothing where it is told to be sound."""

import itertools

import fsspec
import pytest
from optim_conformance.object_store import BUCKETS, PUT_FAULTS, Bucket, KilledError, StoreError

_names = itertools.count()
KEY = "run/key"


@pytest.fixture
def bucket():
    name = f"own{next(_names)}"
    BUCKETS[name] = Bucket(delay=1)
    yield BUCKETS[name]
    del BUCKETS[name]


def files(bucket):
    name = next(name for name, known in BUCKETS.items() if known is bucket)
    return fsspec.filesystem("faulty"), f"faulty://{name}/{KEY}"


def test_a_sound_store_keeps_what_it_is_given(bucket):
    fs, path = files(bucket)
    fs.pipe_file(path, b"one", mode="create")
    with pytest.raises(FileExistsError):
        fs.pipe_file(path, b"two", mode="create")
    assert (fs.cat_file(path), fs.cat_file(path, start=1, end=2)) == (b"one", b"n")
    fs.pipe_file(path, b"three")
    assert fs.info(path)["size"] == 5
    folder = path.rpartition("/")[0]
    assert fs.ls(folder) == [path]
    assert ["faulty://" + key for key in fs.find(folder)] == [path]
    fs.rm_file(path)
    with pytest.raises(FileNotFoundError):
        fs.cat_file(path)
    assert bucket.injected.total() == 0


# What is there at once, what is there in the end, and whether the caller hears of an error.
OUTCOMES = {
    "lost": (None, None, True),
    "lost told": (None, None, False),
    "late": (None, b"body", True),
    "late told": (None, b"body", False),
    "twice": (b"body", b"body", False),
    "torn": (b"cut", b"cut", True),
    "torn told": (b"cut", b"cut", False),
    "answer lost": (b"body", b"body", True),
}


@pytest.mark.parametrize("fault", PUT_FAULTS)
def test_each_fault_does_what_it_says(bucket, fault):
    fs, path = files(bucket)
    bucket.plan = lambda key: fault
    at_once, in_the_end, raises = OUTCOMES[fault]
    if raises:
        with pytest.raises(StoreError, match=fault):
            fs.pipe_file(path, b"body")
    else:
        fs.pipe_file(path, b"body")

    def there():
        found = bucket.objects.get(KEY)
        return b"cut" if found is not None and len(found) < 4 else found

    assert there() == at_once
    bucket.settle()
    assert there() == in_the_end
    assert bucket.injected == {fault: 1}


@pytest.mark.parametrize("fault", ["late", "twice"])
def test_what_arrives_late_heeds_its_condition(bucket, fault):
    fs, path = files(bucket)
    bucket.plan = lambda key: fault
    try:
        fs.pipe_file(path, b"first", mode="create")
    except StoreError:
        assert fault == "late"
    bucket.plan = None
    fs.pipe_file(path, b"second")
    bucket.settle()
    assert bucket.objects[KEY] == b"second"


@pytest.mark.parametrize("after", [False, True])
def test_a_killed_process_does_nothing_more(bucket, after):
    fs, path = files(bucket)
    bucket.kill_at = -1 if after else 1
    for _ in range(2):
        with pytest.raises(KilledError):
            fs.pipe_file(path, b"body")
    assert (KEY in bucket.objects) is after
    with bucket.sound():
        fs.pipe_file(path, b"other")
    assert bucket.objects[KEY] == b"other"


def test_a_listing_lags_and_calls_are_refused(bucket):
    fs, path = files(bucket)
    fs.pipe_file(path, b"body")
    fs.pipe_file(f"{path}2", b"body")
    bucket.lag = 2
    seen = {len(fs.find(path.rpartition("/")[0])) for _ in range(40)}
    assert seen == {1, 2}
    bucket.refusing = 1.0
    for call in (fs.cat_file, fs.info, fs.rm_file, fs.find):
        with pytest.raises(StoreError):
            call(path)
