import json

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from optim_checkpoint import CorruptCheckpointError, _fs
from optim_checkpoint._header import BITS, parse_header
from optim_checkpoint._numpy import bytes_of, dtype_name
from optim_checkpoint._shard import Entry, lay_out, write_shard

DTYPES = ["bool", "uint8", "int16", "float16", "float32", "int64", "float64"]


def parse(raw):
    length = int.from_bytes(raw[:8], "little")
    return parse_header(raw[: 8 + min(length, len(raw))], len(raw), "f")


def arrays(draw):
    shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
    names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
    specs = draw(st.dictionaries(names, st.tuples(st.sampled_from(DTYPES), shapes), max_size=6))
    rng = np.random.default_rng(0)
    return {
        name: np.asarray(rng.random(shape) * 3).astype(dtype)
        for name, (dtype, shape) in specs.items()
        if name != "__metadata__"
    }


ARRAYS = st.composite(arrays)()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder for all examples: making one for each takes longer than what is tested."""
    return tmp_path_factory.mktemp("header")


def write(folder, content, metadata):
    entries = [
        Entry(name, dtype_name(a.dtype, name), a.shape, lambda a=a: bytes_of(a))
        for name, a in content.items()
    ]
    with _fs.opened(_fs.open_folder(folder)) as fd:
        return write_shard(lay_out(entries, metadata), "x.safetensors", fd)


@settings(deadline=None, max_examples=100)
@given(content=ARRAYS, metadata=st.dictionaries(st.text("ab", max_size=2), st.text("xy")))
def test_safetensors_reads_what_we_write(place, content, metadata):
    path = place / "x.safetensors"
    path.unlink(missing_ok=True)
    write(place, content, metadata)
    with safetensors.safe_open(path, "np") as file:
        assert sorted(file.keys()) == sorted(content)
        assert (file.metadata() or {}) == metadata
        for name, array in content.items():
            read = file.get_tensor(name)
            assert (read.dtype, read.shape) == (array.dtype, array.shape)
            assert read.tobytes() == array.tobytes()


@settings(deadline=None, max_examples=100)
@given(content=ARRAYS)
def test_we_read_what_safetensors_writes(content):
    raw = safetensors.numpy.save(content, {"k": "v"})
    header = parse(raw)
    assert header.metadata == {"k": "v"}
    assert sorted(header.tensors) == sorted(content)
    for name, array in content.items():
        info = header.tensors[name]
        assert (info.dtype, info.shape) == (dtype_name(array.dtype, name), array.shape)
        assert raw[header.data_start + info.begin :][: info.nbytes] == array.tobytes()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 20) | st.sampled_from(["F32", "U8", "a", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab_"), inner, max_size=3),
    max_leaves=6,
)
INFOS = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*BITS, "F4", "X"]) | JSON,
        "shape": st.lists(st.integers(-1, 4), max_size=3) | JSON,
        "data_offsets": st.tuples(st.integers(0, 24), st.integers(0, 24)).map(list) | JSON,
    },
    optional={"extra": JSON},
)
HEADERS = st.dictionaries(st.sampled_from(["a", "b", "", "__metadata__", "c\x00"]), INFOS | JSON)


def mutate(raw, edits):
    raw = bytearray(raw)
    for position, value in edits:
        raw[position % len(raw)] = value
    return bytes(raw)


@settings(deadline=None, max_examples=600)
@given(
    header=HEADERS,
    data=st.integers(0, 24),
    padding=st.sampled_from(["", " ", "\n", "  "]),
    edits=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=2),
)
def test_whatever_we_accept_safetensors_accepts_and_reads_alike(
    place, header, data, padding, edits
):
    text = (json.dumps(header) + padding).encode()
    raw = mutate(len(text).to_bytes(8, "little") + text + bytes(range(data)), edits)
    try:
        ours = parse(raw)
    except CorruptCheckpointError:
        return
    path = place / "x.safetensors"
    path.write_bytes(raw)
    with safetensors.safe_open(path, "np") as file:
        assert sorted(file.keys()) == sorted(ours.tensors)
        for name, info in ours.tensors.items():
            part = file.get_slice(name)
            assert part.get_dtype() == info.dtype
            assert tuple(part.get_shape()) == info.shape


@settings(deadline=None, max_examples=200)
@given(content=ARRAYS, edits=st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=3))
def test_a_mutated_file_is_never_read_more_liberally(content, edits):
    raw = mutate(safetensors.numpy.save(content), edits)
    try:
        ours = parse(raw)
    except CorruptCheckpointError:
        return
    theirs = dict(safetensors.deserialize(raw))
    assert theirs.keys() == ours.tensors.keys()
    for name, info in ours.tensors.items():
        assert theirs[name]["shape"] == list(info.shape)
        begin = ours.data_start + info.begin
        assert bytes(theirs[name]["data"]) == raw[begin : begin + info.nbytes]


@pytest.mark.parametrize("name", sorted(BITS))
def test_every_dtype_is_known_to_safetensors(tmp_path, name):
    entry = Entry("x", name, (8,), lambda: memoryview(bytes(BITS[name])))
    with _fs.opened(_fs.open_folder(tmp_path)) as folder:
        write_shard(lay_out([entry], {}), "x.safetensors", folder)
    raw = (tmp_path / "x.safetensors").read_bytes()
    assert dict(safetensors.deserialize(raw))["x"]["dtype"] == name
