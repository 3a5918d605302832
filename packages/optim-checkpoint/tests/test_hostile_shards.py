"""Hostile placements of shards: each is refused by a typed error that names the tensor."""

import json
import threading

import numpy as np
import optim_checkpoint as oc
import pytest
from optim_checkpoint import _generation, _manifest, _place
from optim_checkpoint._boxes import Region, grid_fault, whole
from optim_checkpoint._commit import Document
from optim_checkpoint._digest import digest
from optim_checkpoint._errors import CheckpointWriteError
from optim_checkpoint._files import ShardEntry
from optim_checkpoint._json import dumps
from optim_checkpoint._options import Options
from optim_checkpoint._peers import Team
from optim_checkpoint._together import save_together

WHOLE = (4, 6)
VALUES = np.arange(24, dtype=np.float32).reshape(WHOLE)


class Threads:
    """Two threads that stand for two processes."""

    def __init__(self, size):
        self.size = size
        self.barrier = threading.Barrier(size, timeout=60)
        self.messages = [b""] * size

    def member(self, rank):
        outer = self

        class Member:
            size = outer.size

            def __init__(self):
                self.rank = rank

            def exchange(self, message):
                outer.messages[rank] = message
                try:
                    outer.barrier.wait()
                    answers = list(outer.messages)
                    outer.barrier.wait()
                except threading.BrokenBarrierError:
                    raise RuntimeError("a member is gone") from None
                return answers

            gather = exchange

        return Member()


def box(key, offset, shape, values=VALUES):
    cut = tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))
    data = np.ascontiguousarray(values[cut])
    return ShardEntry(key, "F32", shape, lambda: memoryview(data).cast("B"), offset, WHOLE)


def save_sharded(folder, step=1):
    """Save one tensor in four boxes by two threads."""
    boxes = [[((0, 0), (2, 4)), ((0, 4), (2, 2))], [((2, 0), (2, 4)), ((2, 4), (2, 2))]]
    threads = Threads(2)
    errors = []

    def run(rank):
        entries = [box("t", *cut) for cut in boxes[rank]]
        document = Document(
            step, {"name": "numpy", "versions": {}}, {"train": {}}, {"model": entries}
        )
        team = Team(threads.member(rank), "saving", CheckpointWriteError)
        try:
            save_together(
                folder,
                lambda: document,
                team,
                Options(keep=None, replace=False, max_shard_size=10**9),
            )
        except BaseException as error:
            errors.append(error)
            raise

    workers = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert errors == []


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    save_sharded(folder)
    return folder / "step-00000001"


def body(sound):
    return json.loads((sound / "manifest.json").read_bytes())


def signed(document):
    document.pop("self_digest", None)
    document["self_digest"] = digest(dumps(document))
    return dumps(document)


def test_the_base_is_sound(sound):
    found = body(sound)
    assert found["features"] == ["sharded"]
    assert found["shards"] == {"model": {"t": [4, 6]}}
    assert [file["offsets"]["t"] for file in found["files"]] == [[0, 0], [0, 4], [2, 0], [2, 4]]
    assert len(_manifest.parse(signed(found)).files) == 4
    assert oc.verify(sound.parent).tensors == 1


def shards(value):
    return lambda m: m.update(shards=value)


def shape(value):
    return shards({"model": {"t": value}})


def offset(number, value):
    return lambda m: m["files"][number]["offsets"].update(t=value)


def no_offsets(m):
    del m["files"][1]["offsets"]


def of_file(number, **changes):
    return lambda m: m["files"][number].update(changes)


PARSE = {
    "no shards": (lambda m: m.pop("shards"), "come together"),
    "no feature": (lambda m: m.update(features=[]), "come together"),
    "feature text": (lambda m: m.update(features="sharded"), "features is 'sharded'"),
    "feature number": (
        lambda m: m.update(features=["sharded", 1]),
        r"features is \['sharded', 1\]",
    ),
    "shards null": (shards(None), "are malformed"),
    "shards list": (shards([]), "are malformed"),
    "shards empty": (shards({}), "are malformed"),
    "shards of an unknown part": (shards({"other": {"t": [4, 6]}}), "'other' are malformed"),
    "shards of a part empty": (shards({"model": {}}), "'model' are malformed"),
    "shards of a part list": (shards({"model": ["t"]}), "'model' are malformed"),
    "shape null": (shape(None), "has the shape None"),
    "shape text": (shape("46"), "has the shape '46'"),
    "shape of text": (shape(["4", "6"]), "has the shape"),
    "shape boolean": (shape([True, 6]), "has the shape"),
    "shape negative": (shape([-4, 6]), "has the shape"),
    "shape zero": (shape([0, 6]), "has the shape"),
    "shape huge": (shape([2**49, 6]), "has the shape"),
    "shape product huge": (shape([2**40, 2**40]), "has the shape"),
    "shape of 33 dimensions": (shape([1] * 33), "places it at"),
    "shape of one dimension": (shape([24]), r"places it at \[0, 0\] of \[24\]"),
    "shape of three dimensions": (shape([4, 6, 1]), "places it at"),
    "another key sharded": (shards({"model": {"u": [4, 6]}}), "places it at"),
    "a key more sharded": (
        shards({"model": {"t": [4, 6], "u": [4, 6]}}),
        "'u': no file holds a shard of it",
    ),
    "a part more sharded": (
        shards({"model": {"t": [4, 6]}, "optim": {"t": [4, 6]}}),
        "no file holds a shard of it",
    ),
    "no offsets": (no_offsets, "does not say where its shard lies"),
    "offsets null": (of_file(1, offsets=None), "does not say where its shard lies"),
    "offsets empty": (of_file(1, offsets={}), "places it at"),
    "offsets list": (of_file(1, offsets=[[0, 4]]), "places it at"),
    "offsets of another": (of_file(1, offsets={"t": [0, 4], "u": [0, 4]}), "'u': "),
    "offset null": (offset(1, None), "places it at None"),
    "offset text": (offset(1, "04"), "places it at"),
    "offset short": (offset(1, [0]), "places it at"),
    "offset long": (offset(1, [0, 4, 0]), "places it at"),
    "offset negative": (offset(1, [0, -4]), "places it at"),
    "offset boolean": (offset(1, [False, 4]), "places it at"),
    "offset huge": (offset(1, [0, 2**49]), "places it at"),
}


@pytest.mark.parametrize("more", ["sharded", "x"])
def test_a_feature_beside_shards_is_a_newer_releases_and_no_damage(sound, more):
    document = body(sound)
    document["features"].append(more)
    with pytest.raises(oc.CheckpointError, match="needs the features") as caught:
        _manifest.parse(signed(document))
    assert not isinstance(caught.value, oc.CorruptCheckpointError)


@pytest.mark.parametrize("case", PARSE)
def test_hostile_placements_are_refused_by_the_manifest(sound, case):
    change, message = PARSE[case]
    document = body(sound)
    change(document)
    with pytest.raises(oc.CorruptCheckpointError, match=message):
        _manifest.parse(signed(document), "m")


def reheader(folder, document, number, offsets):
    """Put other offsets into the header of a file, with every digest made right."""
    record = document["files"][number]
    path = folder / record["name"]
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header["__metadata__"]["DCP_SHARDING_INFO"] = dumps({"t": {"saved_offsets": offsets}}).decode()
    text = dumps(header, sort=False)
    text += b" " * (-(8 + len(text)) % 64)
    head = len(text).to_bytes(8, "little") + text
    path.write_bytes(head + raw[8 + length :])
    record.update(size=path.stat().st_size, header=digest(head), offsets={"t": offsets})


def place(*moves):
    """Return a change that places shards elsewhere, in headers and manifest alike."""

    def change(folder, document):
        for number, offsets in moves:
            reheader(folder, document, number, offsets)

    return change


def whole_shape(value):
    def change(folder, document):
        document["shards"]["model"]["t"] = value

    return change


def drop(folder, document):
    del document["files"][3]


def header_only(folder, document):
    before = document["files"][1]["offsets"]
    reheader(folder, document, 1, [2, 4])
    document["files"][1]["offsets"] = before


def manifest_only(folder, document):
    first, second = document["files"][1], document["files"][3]
    first["offsets"], second["offsets"] = second["offsets"], first["offsets"]


GRID = {
    "overlap": (place((1, [0, 3])), "its shards overlap at 3 along dimension 1"),
    "hole": (place((1, [0, 5]), (3, [2, 5])), "leave a hole at 4 along dimension 1"),
    "out of range": (place((2, [3, 0]), (3, [3, 4])), "leave a hole at 2 along dimension 0"),
    "same place": (place((1, [2, 4])), "two of its shards lie at the same place"),
    "too small a whole": (whole_shape([4, 5]), "its shards cover 6 of 5 along dimension 1"),
    "too large a whole": (whole_shape([5, 6]), "its shards cover 4 of 5 along dimension 0"),
    "a huge whole": (whole_shape([2**40, 6]), "its shards cover 4 of 1099511627776"),
    "one missing": (drop, "it has 3 shards, its grid has 4 cells"),
    "header says another place": (header_only, "DCP_SHARDING_INFO is not what the manifest says"),
    "manifest says another place": (manifest_only, "DCP_SHARDING_INFO is not what the manifest"),
}


@pytest.fixture
def copied(sound, tmp_path):
    import shutil

    shutil.copytree(sound, tmp_path / "step-00000001")
    return tmp_path / "step-00000001"


@pytest.mark.parametrize("case", GRID)
def test_shards_that_do_not_make_up_the_whole_are_refused(copied, case):
    change, message = GRID[case]
    document = body(copied)
    change(copied, document)
    (copied / "manifest.json").write_bytes(signed(document))
    with pytest.raises(oc.CorruptCheckpointError, match=message) as caught:
        oc.inspect(copied.parent, 1)
    assert "step-00000001/model" in str(caught.value)
    assert oc.latest_step(copied.parent) is None


def retyped(path, old, new):
    raw = path.read_bytes()
    assert raw.count(old) == 1
    path.write_bytes(raw.replace(old, new))
    return digest(path.read_bytes()[: 8 + int.from_bytes(raw[:8], "little")])


def test_shards_of_two_dtypes_are_refused(copied):
    document = body(copied)
    record = document["files"][2]
    record["header"] = retyped(copied / record["name"], b'"F32"', b'"I32"')
    (copied / "manifest.json").write_bytes(signed(document))
    message = r"'t': a shard of I32\[2, 4\] is no part of F32\[4, 6\]"
    with pytest.raises(oc.CorruptCheckpointError, match=message):
        oc.verify(copied.parent)


def test_swapped_shards_are_refused(copied):
    one, two = (copied / "model" / f"model-0000{n}-of-00004.safetensors" for n in (1, 3))
    raw = one.read_bytes()
    assert len(raw) == two.stat().st_size
    one.write_bytes(two.read_bytes())
    two.write_bytes(raw)
    with pytest.raises(oc.CorruptCheckpointError, match=r"model-0000.*the header's digest"):
        oc.verify(copied.parent)


def test_swapped_data_of_shards_is_refused_with_the_tensor(copied):
    one, two = (copied / "model" / f"model-0000{n}-of-00004.safetensors" for n in (1, 3))
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(first[:-32] + second[-32:])
    with pytest.raises(oc.CorruptCheckpointError, match=r"model-00001-of-00004.*, tensor 't'"):
        oc.verify(copied.parent)


def test_a_missing_shard_is_named(copied):
    (copied / "model" / "model-00003-of-00004.safetensors").unlink()
    with pytest.raises(
        oc.CorruptCheckpointError, match=r"model-00003-of-00004\.safetensors: cannot"
    ):
        oc.latest_step(copied.parent) or oc.verify(copied.parent)


MUTANTS = {
    "grid": ("if fault is not None:", "if False:", "hole"),
    "header offsets": (
        "if header.metadata.get(SHARDING) != expected:",
        "if False:",
        "header says another place",
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_each_check_is_needed(copied, monkeypatch, name):
    from pathlib import Path

    old, new, case = MUTANTS[name]
    document = body(copied)
    GRID[case][0](copied, document)
    (copied / "manifest.json").write_bytes(signed(document))
    source = Path(_generation.__file__).read_text()
    assert source.count(old) == 1
    namespace = dict(vars(_generation))
    exec(compile(source.replace(old, new), "mutant", "exec"), namespace)
    monkeypatch.setattr(_place, "Generation", namespace["Generation"])
    assert oc.inspect(copied.parent, 1).step == 1


FAULTS = {
    "no shards at all": ((2,), [], "cover 0 of 2"),
    "an empty shard": ((2,), [((0,), (2,)), ((2,), (0,))], "empty shard at 2"),
    "a scalar twice": ((), [((), ()), ((), ())], "the same place"),
    "a diagonal": ((2, 2), [((0, 0), (1, 1)), ((1, 1), (1, 1))], "2 shards, its grid has 4"),
    "bricks": (
        (2, 4),
        [((0, 0), (1, 4)), ((1, 0), (1, 2)), ((1, 2), (1, 2))],
        "overlap at 0 along dimension 1",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_what_is_no_grid_has_a_reason(case):
    shape, boxes, message = FAULTS[case]
    assert message in grid_fault(shape, boxes)


def test_regions_of_any_shape_get_their_elements():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 255, (5, 4, 3), np.uint16)
    raw = values[..., None].view(np.uint8)
    for _ in range(200):
        low = rng.integers(0, values.shape)
        high = [int(rng.integers(a + 1, n + 1)) for a, n in zip(low, values.shape, strict=True)]
        cut = tuple(slice(int(a), b) for a, b in zip(low, high, strict=True))
        region = Region(tuple(map(int, low)), np.zeros_like(raw[cut]))
        for row in range(0, 5, 2):
            region.take((row, 0, 0), np.ascontiguousarray(raw[row : row + 2]))
        assert (region.data == raw[cut]).all()
    assert whole(raw.reshape(-1), values.shape, 2).view_of((1, 0, 0), (2, 4, 3)).nbytes == 48
    assert whole(raw.reshape(-1), values.shape, 2).view_of((1, 1, 0), (2, 2, 3)) is None
    assert whole(raw.reshape(-1), values.shape, 2).view_of((4, 0, 0), (2, 4, 3)) is None
