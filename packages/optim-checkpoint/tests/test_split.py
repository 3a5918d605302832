"""Parts in several files: limits, names, the index, and what happens when one is wrong."""

import json

import optim_checkpoint as oc
import pytest
import safetensors
from optim_checkpoint import _files
from optim_checkpoint._commit import Document, commit
from optim_checkpoint._export import export
from optim_checkpoint._files import ShardEntry, split
from optim_checkpoint._header import parse_header
from optim_checkpoint._options import Options
from optim_checkpoint._shard import Entry


def parts_of(path, part="model"):
    return sorted(p.name for p in (path / part).iterdir())


@pytest.fixture
def saved(tmp_path, make_document):
    return commit(tmp_path, make_document(1), Options(max_shard_size=2000))


def test_a_large_part_takes_several_files_with_an_index(saved, load, check):
    assert parts_of(saved) == [
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
        "model.safetensors.index.json",
    ]
    # A part that fits is one file, under the name it always has.
    assert parts_of(saved, "optim") == ["optim.safetensors"]
    check(load(saved.parent).value, 1)
    assert oc.verify(saved.parent).files == 4


def test_the_index_is_that_of_hugging_face(saved):
    index = json.loads((saved / "model" / "model.safetensors.index.json").read_text())
    assert index.keys() == {"metadata", "weight_map"}
    sizes = {}
    for name in set(index["weight_map"].values()):
        with safetensors.safe_open(saved / "model" / name, "np") as file:
            for key in sorted(file.keys()):
                assert index["weight_map"][key] == name
                sizes[key] = file.get_tensor(key).nbytes
    assert sizes.keys() == index["weight_map"].keys()
    assert index["metadata"] == {"total_size": sum(sizes.values())}


def test_export_puts_the_files_together(saved, tmp_path):
    count = export(saved.parent, tmp_path / "m.safetensors")
    with safetensors.safe_open(tmp_path / "m.safetensors", "np") as file:
        assert len(list(file.keys())) == count == 6


def test_equal_state_gives_equal_files(tmp_path, make_document):
    paths = [commit(tmp_path / run, make_document(1), Options(max_shard_size=2000)) for run in "ab"]
    files = [p.relative_to(paths[0]) for p in paths[0].rglob("*") if p.is_file()]
    assert len(files) == 6
    for file in files:
        assert (paths[0] / file).read_bytes() == (paths[1] / file).read_bytes()


DAMAGE = {
    "index missing": (lambda p: p.unlink(), "cannot be opened"),
    "index empty": (lambda p: p.write_bytes(b""), "does not list the files"),
    "index flipped": (
        lambda p: p.write_bytes(p.read_bytes().replace(b"00001-of", b"00002-of", 1)),
        "does not list the files as the manifest does",
    ),
    "index a link": (
        lambda p: (p.rename(p.with_name("x")), p.symlink_to("x")),
        "is a symbolic link",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_wrong_index_is_damage(saved, case):
    damage, message = DAMAGE[case]
    damage(saved / "model" / "model.safetensors.index.json")
    with pytest.raises(
        oc.CorruptCheckpointError, match=rf"model\.safetensors\.index\.json: {message}"
    ):
        oc.verify(saved.parent)


def test_swapped_files_are_damage(saved):
    one, two = (saved / "model" / f"model-0000{n}-of-00003.safetensors" for n in (1, 2))
    one.rename(saved / "x")
    two.rename(one)
    (saved / "x").rename(two)
    with pytest.raises(oc.CorruptCheckpointError, match=r"model-00001-of-00003\.safetensors: has"):
        oc.verify(saved.parent)


def entry(name, size):
    return Entry(name, "U8", (size,), lambda: memoryview(bytes(size)))


SPLITS = {
    "fits": ([("a", 4), ("b", 6)], 10, [["a", "b"]]),
    "just not": ([("a", 4), ("b", 7)], 10, [["a"], ["b"]]),
    "one too large": ([("a", 4), ("b", 99), ("c", 1)], 10, [["a"], ["b"], ["c"]]),
    "all too large": ([("a", 4), ("b", 4)], 1, [["a"], ["b"]]),
    "empty tensors": ([("a", 0), ("b", 0)], 1, [["a", "b"]]),
    "nothing": ([], 10, []),
    "one name twice": ([("a", 1), ("a", 1), ("b", 1)], 10, [["a", "b"], ["a"]]),
}


@pytest.mark.parametrize("case", SPLITS)
def test_tensors_fill_files_in_order(case):
    entries, limit, expected = SPLITS[case]
    found = split([entry(*item) for item in entries], limit)
    assert [[item.name for item in file] for file in found] == expected


def test_offsets_in_headers_are_bounded_by_more_files(monkeypatch):
    shards = [
        ShardEntry(f"t{i}" * 100, "U8", (1,), lambda: memoryview(b"x"), (1,), (2,))
        for i in range(20)
    ]
    monkeypatch.setattr(_files, "MAX_INFO", 1000)
    files = [_files.plan_file("model", 0, 1, group) for group in split(shards, 10**9)]
    assert len(files) > 5
    for file in files:
        header = parse_header(file.layout.head, file.layout.size, "f")
        assert 0 < len(header.metadata["DCP_SHARDING_INFO"]) <= 1000
    # Whole tensors have no offsets to hold.
    assert len(split([entry(f"t{i}" * 100, 1) for i in range(20)], 10**9)) == 1


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "5GB", None])
def test_a_limit_that_is_none_is_refused(tmp_path, value):
    with pytest.raises(ValueError, match="it must be an integer of at least 1 byte"):
        commit(tmp_path, Document(1, {}, {}, {}), Options(max_shard_size=value))
    assert oc.steps(tmp_path) == []
