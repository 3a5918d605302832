"""What a save acknowledges a restore accepts; what it does not leaves everything as it was."""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import optim_checkpoint as oc
import pytest
import safetensors
from optim_checkpoint import _files, _fs, _generation, _header, _json, _manifest, _shard
from optim_checkpoint._collect import Collector, Staging, read_staged
from optim_checkpoint._commit import Document, commit
from optim_checkpoint._files import ShardEntry, split
from optim_checkpoint._numpy import bytes_of
from optim_checkpoint._options import Options
from optim_checkpoint._peers import Alone, Team
from optim_checkpoint._select import choose
from optim_checkpoint._shard import Entry
from optim_checkpoint._together import save_together
from optim_checkpoint._typed import encode_exact


def entry(name, shape=(1,), dtype="U8"):
    nbytes = int(np.prod(shape, dtype=object)) * _header.BITS[dtype] // 8
    return Entry(name, dtype, shape, lambda: memoryview(bytes(nbytes)))


def document(step, *entries, **train):
    return Document(step, {"name": "numpy", "versions": {}}, {"train": train}, {"model": entries})


def snapshot(folder):
    """Return every file with its bytes, the lock apart."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if path.name != ".lock"
    }


def extra_of(value):
    """Return the train part of a save of `value` by the framework-free core."""
    collector = Collector()
    leaf = collector.numpy_leaf("", exact=True)
    typed = encode_exact(value, "extra", leaf, collector.features)
    collector.check_views()
    return typed, collector


def save_extra(folder, step, value, **options):
    typed, collector = extra_of(value)
    made = Document(
        step,
        {"name": "numpy", "versions": {}},
        {"train": {"extra": typed}},
        {"train": collector.entries},
        features=collector.features,
    )
    return commit(folder, made, Options(**options))


def load_extra(folder):
    def read(generation):
        staging = Staging.of(generation, "train")
        value = staging.decode(generation.manifest.sections["train"]["extra"])
        read_staged(generation, staging)
        return value

    return choose(folder, None, read).value


LARGE = (1 << 48) + 1
REFUSED = {
    "reserved name": (
        document(2, entry("__metadata__")),
        {},
        (
            r"^__metadata__: a tensor cannot have this name, which safetensors reserves for what a "
            r"file says of itself; rename it$"
        ),
    ),
    "huge dimension": (
        document(2, entry("a", (0, LARGE))),
        {},
        rf"^a: has the dimension {LARGE}, the limit is {1 << 48}$",
    ),
    "huge empty shape": (
        document(2, entry("a", (0, 1 << 40, 1 << 40))),
        {},
        "^a: has a shape too large for any file$",
    ),
    "too many dimensions to parse": (
        document(2, entry("a", (1,) * 100_000)),
        {},
        "^a: cannot be stored: its header: .*too many to parse.*are the limit",
    ),
    "too many files": (
        document(2, *(entry(f"t{i}") for i in range(17_000))),
        {"max_shard_size": 1},
        (
            "^the state: takes 17000 files of at most 1 bytes of tensors, the limit is 16384; save "
            "with a greater max_shard_size$"
        ),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_reader_would_refuse_is_refused_and_nothing_is_deleted(tmp_path, monkeypatch, case):
    monkeypatch.setattr(_json, "MEMORY", 5 << 20)
    made, options, message = REFUSED[case]
    commit(tmp_path, document(1, entry("a")))
    before = snapshot(tmp_path)
    with pytest.raises(oc.UnsupportedStateError, match=message):
        commit(tmp_path, made, Options(keep=1, **options))
    assert snapshot(tmp_path) == before


def test_a_manifest_that_is_too_large_names_what_takes_it(tmp_path, monkeypatch):
    commit(tmp_path, document(1, entry("a")))
    before = snapshot(tmp_path)
    monkeypatch.setattr(_manifest, "LIMITS", _json.Limits(20_000, 400))
    big = document(2, entry("a"), extra={"str": "x" * 30_000}, scheduler={"int": "1"})
    message = r"^extra: takes 30010 bytes of the manifest, .* the limit is 20000$"
    with pytest.raises(oc.UnsupportedStateError, match=message):
        commit(tmp_path, big, Options(keep=1))
    assert snapshot(tmp_path) == before


class Tampering(_fs.FileOps):
    """A disk that changes what the function picks out."""

    def __init__(self, change):
        self.change = change

    def write(self, fd, data):
        raw = bytes(data)
        changed = self.change(raw)
        assert len(changed) == len(raw)
        super().write(fd, memoryview(changed))
        return len(raw)


TAMPERED = {
    "header": (lambda raw: raw.replace(b'"U8"', b'"I8"'), "the header's digest is"),
    "manifest": (lambda raw: raw.replace(b'"step":"2"', b'"step":"3"'), "self_digest is"),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_what_does_not_read_back_is_not_committed(tmp_path, monkeypatch, case):
    change, message = TAMPERED[case]
    commit(tmp_path, document(1, entry("a")))
    before = snapshot(tmp_path)
    monkeypatch.setattr(_fs, "ops", Tampering(change))
    with pytest.raises(
        oc.CheckpointWriteError,
        match=rf"^step 2 was not saved: what was written cannot be read back \(.*{message}",
    ):
        commit(tmp_path, document(2, entry("a")), Options(keep=1))
    assert snapshot(tmp_path) == before


def save_alone_together(folder, made, **options):
    """Save by the protocol of several processes, of which there is one."""
    team = Team(Alone(), "saving", oc.CheckpointWriteError)
    settings = {"keep": 1, "replace": False, "max_shard_size": 10**9, **options}
    return save_together(folder, lambda: made, team, Options(**settings))


@pytest.mark.parametrize("case", TAMPERED)
def test_processes_that_save_together_commit_only_what_reads_back(tmp_path, monkeypatch, case):
    change, message = TAMPERED[case]
    save_alone_together(tmp_path, document(1, entry("a")))
    before = snapshot(tmp_path)
    monkeypatch.setattr(_fs, "ops", Tampering(change))
    with pytest.raises(oc.CheckpointWriteError, match=f"cannot be read back .*{message}"):
        save_alone_together(tmp_path, document(2, entry("a")))
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("case", REFUSED)
def test_processes_that_save_together_refuse_what_a_reader_would(tmp_path, monkeypatch, case):
    monkeypatch.setattr(_json, "MEMORY", 5 << 20)
    made, options, message = REFUSED[case]
    save_alone_together(tmp_path, document(1, entry("a")))
    before = snapshot(tmp_path)
    with pytest.raises(oc.UnsupportedStateError, match=message):
        save_alone_together(tmp_path, made, **options)
    assert snapshot(tmp_path) == before


def test_a_list_that_processes_save_together_is_kept(tmp_path):
    typed, collector = extra_of({"v": list(range(N))})
    made = Document(
        1,
        {"name": "numpy", "versions": {}},
        {"train": {"extra": typed}},
        {"train": collector.entries},
        features=collector.features,
    )
    path = save_alone_together(tmp_path, made)
    assert json.loads((path / "manifest.json").read_bytes())["features"] == ["columns"]
    assert load_extra(tmp_path) == {"v": list(range(N))}


def test_one_file_at_a_time_is_open_while_it_is_read_back(tmp_path, monkeypatch):
    peak = 0
    original = _generation.Generation._check_file

    def counted(self, *arguments):
        nonlocal peak
        if self._sealing:
            peak = max(peak, len(list(Path("/proc/self/fd").iterdir())))
        return original(self, *arguments)

    monkeypatch.setattr(_generation.Generation, "_check_file", counted)
    few = document(1, *(entry(f"t{i}") for i in range(3)))
    commit(tmp_path, few, Options(max_shard_size=1))
    first, peak = peak, 0
    commit(tmp_path, document(2, *(entry(f"t{i}") for i in range(60))), Options(max_shard_size=1))
    assert 0 < peak <= first


def test_the_data_is_not_read_again(tmp_path, monkeypatch):
    def forbidden(*_):
        raise AssertionError("the data was read")

    monkeypatch.setattr(_generation.Generation, "_read_tensor", forbidden)
    commit(tmp_path, document(1, entry("a", (1000,))))


def test_headers_that_no_reader_takes_become_more_files(monkeypatch):
    monkeypatch.setattr(_files, "MAX_TENSORS", 100)
    assert [len(f) for f in split([entry(f"t{i}") for i in range(250)], 10**9)] == [100, 100, 50]
    monkeypatch.undo()
    for module in (_header, _files, _shard):
        monkeypatch.setattr(module, "MAX_HEADER", 1 << 20)
    names = [entry(f"t{i}" + "ü" * 500) for i in range(800)]
    files = split(names, 10**9)
    assert len(files) > 2
    for number, group in enumerate(files):
        layout = _files.plan_file("model", number, len(files), group).layout
        assert len(layout.head) <= _header.MAX_HEADER
        _header.parse_header(layout.head, layout.size, "f", 1 << 20)


def test_many_dimensions_are_parsed_in_bounds(monkeypatch):
    for module in (_json, _files):
        monkeypatch.setattr(module, "MEMORY", 4 << 20)
    wide = [entry(f"t{i}", (1,) * 60) for i in range(2000)]
    files = split(wide, 10**9)
    assert len(files) > 1
    for number, group in enumerate(files):
        layout = _files.plan_file("model", number, len(files), group).layout
        _json.measure(layout.head[8:], "f", _json.Limits(_header.MAX_HEADER, _header.MAX_DEPTH))


def test_offsets_fit_beside_the_names(monkeypatch):
    shards = [
        ShardEntry(f'"{i}"' + "ü" * 400, "U8", (1,), lambda: memoryview(b"x"), (1,), (2,))
        for i in range(600)
    ]
    monkeypatch.setattr(_files, "MAX_INFO", 200_000)
    for module in (_files, _shard):
        monkeypatch.setattr(module, "MAX_HEADER", 1_600_000)
    groups = split(shards, 10**9)
    assert len(groups) > 2
    for group in groups:
        layout = _files.plan_file("model", 0, 1, group).layout
        _header.parse_header(layout.head, layout.size, "f", 1_600_000)


def test_a_name_that_no_tensor_may_have_gets_a_label():
    collector = Collector()
    long = "x" * 3000
    keys = [
        collector.add(name, "U8", (0,), lambda: memoryview(b""))
        for name in (long, long, "a\nb", "plain")
    ]
    assert len(set(keys)) == 4
    assert all(_header.is_name(key) for key in keys)
    assert keys[3] == "plain"
    with pytest.raises(oc.UnsupportedStateError, match=r"\\ud800.*: the name is not Unicode"):
        collector.add("\ud800", "U8", (0,), lambda: memoryview(b""))


def test_a_large_manifest_is_refused_by_its_size(run_folder):
    """A sparse file: nothing of it is read."""
    path = run_folder / "step-00000002" / "manifest.json"
    os.truncate(path, _manifest.MAX_MANIFEST + 1)
    with pytest.raises(oc.CorruptCheckpointError, match=f"the limit is {_manifest.MAX_MANIFEST}"):
        oc.verify(run_folder)


N = 5000
LISTS = {
    "ints": list(range(-N, N)),
    "large ints": [2**64 - 1 - i for i in range(N)],
    "ints beyond 64 bits": [2**70 + i for i in range(N)],
    "bools": [i % 3 == 0 for i in range(N)],
    "floats": [float("nan"), -0.0, float("inf"), 5e-324, *np.linspace(-1, 1, N).tolist()],
    "texts": ["", "ü\0\n", *(f"file-{i}" for i in range(N))],
    "mixed numbers": [1, 2.0, True, *range(N)],
    "nested": [[i, str(i)] for i in range(N)],
    "tuple": tuple(range(N)),
    "dict of text": {f"k{i}": i for i in range(N)},
    "dict of lists": {i: [float(i)] for i in range(N)},
    "dict of mixed keys": {**{f"k{i}": i for i in range(N)}, 5: None, (1, 2): "t"},
    "dict of bools and texts": dict.fromkeys(map(str, range(N)), "x"),
}


@pytest.mark.parametrize("case", LISTS)
def test_long_lists_come_back_in_type_and_bits(tmp_path, case):
    value = LISTS[case]
    path = save_extra(tmp_path, 1, {"v": value})
    found = load_extra(tmp_path)["v"]
    assert type(found) is type(value)
    assert repr(found) == repr(value)
    manifest = json.loads((path / "manifest.json").read_bytes())
    stored = "train" in {file["name"].partition("/")[0] for file in manifest["files"]}
    assert manifest["features"] == (["columns"] if stored else [])
    plain = {"ints beyond 64 bits", "mixed numbers", "nested", "dict of mixed keys"}
    assert stored == (case not in plain)


def test_the_bits_of_every_float_are_kept(tmp_path):
    words = np.random.default_rng(0).integers(0, 2**63, N, np.uint64)
    words[:2] = 0x7FF8_0000_DEAD_BEEF, 0xFFF0_0000_0000_0001
    save_extra(tmp_path, 1, {"v": words.view(np.float64).tolist()})
    found = np.array(load_extra(tmp_path)["v"])
    assert (found.view(np.uint64)[2:] == words[2:]).all()
    assert found.view(np.uint64)[0] == words[0]


def test_a_short_list_needs_no_newer_reader(tmp_path):
    path = save_extra(tmp_path, 1, {"v": list(range(4095)), "d": {str(i): i for i in range(9)}})
    assert json.loads((path / "manifest.json").read_bytes())["features"] == []


def column(generation, content):
    staging = Staging.of(generation, "train")
    return staging.decode({"list": [{"column": item} for item in content]})


HOSTILE_COLUMNS = {
    "twice": [["list", N, "extra"], ["list", N, "extra"]],
    "count": [["list", N - 1, "extra"]],
    "count text": [["list", "5000", "extra"]],
    "kind": [["set", N, "extra"]],
    "no key": [["list", N]],
    "three keys": [["list", N, "extra", "extra", "extra"]],
    "texts of numbers": [["list", N, "extra", "other"]],
    "missing": [["list", N, "nothing"]],
    "null": [None],
    "unhashable": [["list", N, ["extra"]]],
}


@pytest.mark.parametrize("case", HOSTILE_COLUMNS)
def test_malformed_columns_are_refused(tmp_path, case):
    entries = [
        Entry("extra", "I64", (N,), lambda: bytes_of(np.arange(N))),
        Entry("other", "I64", (N,), lambda: bytes_of(np.arange(N))),
    ]
    commit(tmp_path, Document(1, {"name": "numpy"}, {"train": {}}, {"train": entries}))
    with pytest.raises(oc.CorruptCheckpointError):
        choose(tmp_path, None, lambda generation: column(generation, HOSTILE_COLUMNS[case]))


def test_a_damaged_column_is_found_before_it_is_used(tmp_path):
    path = save_extra(tmp_path, 1, {"v": list(range(N))})
    file = path / "train" / "train.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(oc.CorruptCheckpointError, match="its digest is"):
        load_extra(tmp_path)


def test_an_older_reader_refuses_what_it_lacks_and_does_not_call_it_damage(tmp_path, monkeypatch):
    save_extra(tmp_path, 1, {"v": [0]})
    save_extra(tmp_path, 2, {"v": list(range(N))})
    monkeypatch.setattr(_manifest, "FEATURES", {"sharded"})
    with pytest.raises(oc.CheckpointError, match=r"needs the features \['columns'\]") as caught:
        load_extra(tmp_path)
    assert not isinstance(caught.value, oc.CorruptCheckpointError)


def test_digits_that_the_interpreter_refuses_are_named(tmp_path):
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(640)
    try:
        with pytest.raises(oc.UnsupportedStateError, match=r"^extra\['n'\]: Exceeds the limit"):
            save_extra(tmp_path, 1, {"n": 1 << 4000})
    finally:
        sys.set_int_max_str_digits(limit)


def state_of(count):
    """Return a state of `count` tensors with a table of them, as an optimizer's is."""
    zeros = memoryview(bytes(4))
    entries = [Entry(f"state.layer{i}.weight.mu", "F32", (1,), lambda: zeros) for i in range(count)]
    table = [
        {"param": f"layer{i}.weight", "slots": {"dict": [[{"str": "mu"}, {"tensor": item.name}]]}}
        for i, item in enumerate(entries)
    ]
    return Document(
        1, {"name": "torch"}, {"optimizer": {"state": table}, "train": {}}, {"optim": entries}
    )


@pytest.mark.parametrize(
    ("count", "seconds"),
    [(3000, 60), pytest.param(1_000_000, 900, marks=pytest.mark.nightly)],
)
def test_many_tensors_are_saved_and_verified(memory_path, count, seconds):
    """Bounds for a busy machine: a quadratic step would take hours."""
    start = time.perf_counter()
    path = commit(memory_path, state_of(count))
    report = oc.verify(memory_path)
    assert report.tensors == count
    assert time.perf_counter() - start < seconds
    assert report.files == (1 if count <= 200_000 else len(list((path / "optim").glob("*-of-*"))))
    with safetensors.safe_open(sorted((path / "optim").glob("*.safetensors"))[0], "np") as file:
        assert len(list(file.keys())) <= 200_000


@pytest.mark.nightly
def test_ten_million_numbers_are_kept(memory_path):
    value = {"ints": list(range(10_000_000)), "floats": np.linspace(0, 1, 10_000_000).tolist()}
    save_extra(memory_path, 1, value)
    assert load_extra(memory_path) == value
