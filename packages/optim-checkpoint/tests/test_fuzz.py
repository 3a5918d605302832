"""Mutated files against `safetensors.safe_open`: what this reader accepts, that one reads alike.

The property tests of test_header.py search and shrink; this one only counts, and is fast enough for
hundreds of thousands of inputs.
"""

import json
import os
import random

import pytest
import safetensors
from optim_checkpoint import CorruptCheckpointError
from optim_checkpoint._header import BITS, parse_header

DTYPES = [*BITS, "F4", "F6_E2M3", "C128", "f32", ""]
VALUES = [
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    16,
    63,
    64,
    -1,
    2**31,
    2**48,
    2**63,
    2**64,
    1.0,
    True,
    None,
    "4",
    [],
    {},
]
PIECES = [
    b" ",
    b"\n",
    b"\0",
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"\\u0041",
    b"1e3",
    b"NaN",
    b"\xff",
]


def sound(rng):
    """Return the header and the data size of a sound file."""
    header, position = {}, 0
    if rng.random() < 0.3:
        header["__metadata__"] = {"k": "v"}
    for name in rng.sample(["a", "b", "c.d", "ü", "e/f"], rng.randrange(4)):
        dtype = rng.choice(list(BITS))
        shape = [rng.randrange(4) for _ in range(rng.randrange(3))]
        size = BITS[dtype] // 8
        for extent in shape:
            size *= extent
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + size]}
        position += size
    return header, position


def change(rng, header):
    """Change one thing about the meaning of a header."""
    names = [name for name in header if name != "__metadata__"]
    if not names:
        header["x"] = rng.choice(VALUES)
        return
    info = header[rng.choice(names)]
    kind = rng.randrange(7)
    if kind == 0:
        info["dtype"] = rng.choice(DTYPES)
    elif kind == 1:
        info["shape"] = [rng.choice(VALUES) for _ in range(rng.randrange(4))]
    elif kind == 2:
        info["data_offsets"][rng.randrange(2)] = rng.choice(VALUES)
    elif kind == 3:
        info[rng.choice(["dtype", "shape", "data_offsets", "extra"])] = rng.choice(VALUES)
    elif kind == 4:
        info["shape"].insert(rng.randrange(len(info["shape"]) + 1), rng.choice([0, 1, 1, 1, 2]))
    elif kind == 5:
        header[rng.choice(["", "a\0", "__metadata__", "z"])] = rng.choice([info, {}, *VALUES])
    else:
        info.pop(rng.choice(list(info)))


def scramble(rng, raw):
    """Change bytes, among them those of the length."""
    raw = bytearray(raw)
    for _ in range(rng.randrange(1, 3)):
        at = rng.randrange(len(raw))
        kind = rng.randrange(4)
        if kind == 0:
            raw[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            raw[at:at] = rng.choice(PIECES)
        elif kind == 2:
            del raw[at : at + rng.randrange(1, 5)]
        else:
            raw[at] = rng.randrange(256)
        if not raw:
            break
    return bytes(raw)


def mutant(rng):
    """Return the bytes of a file that may or may not be sound."""
    header, size = sound(rng)
    if rng.random() < 0.6:
        change(rng, header)
    text = json.dumps(header, ensure_ascii=rng.random() < 0.5).encode()
    if rng.random() < 0.3:
        text = scramble(rng, text)
    text += b" " * rng.randrange(3)
    size = max(0, size + rng.choice([0, 0, 0, 0, -1, 1]))
    raw = len(text).to_bytes(8, "little") + text + rng.randbytes(size)
    return scramble(rng, raw) if rng.random() < 0.2 else raw


def agrees(raw, path):
    """Return whether a file was accepted; it must then be read alike by the library."""
    length = int.from_bytes(raw[:8], "little")
    try:
        ours = parse_header(raw[: 8 + min(length, len(raw))], len(raw), "f")
    except CorruptCheckpointError:
        return False
    with open(path, "wb", buffering=0) as file:  # noqa: PTH123 - a hundred thousand times
        file.write(raw)
    with safetensors.safe_open(path, "np") as file:
        assert sorted(file.keys()) == sorted(ours.tensors), raw
        assert (file.metadata() or {}) == dict(ours.metadata), raw
        for name, info in ours.tensors.items():
            part = file.get_slice(name)
            assert (part.get_dtype(), tuple(part.get_shape())) == (info.dtype, info.shape), raw
    theirs = dict(safetensors.deserialize(raw))
    for name, info in ours.tensors.items():
        begin = ours.data_start + info.begin
        assert bytes(theirs[name]["data"]) == raw[begin : begin + info.nbytes], raw
    return True


def fuzz(folder, seed, count):
    rng = random.Random(seed)
    path = os.fspath(folder / "x.safetensors")
    return sum(agrees(mutant(rng), path) for _ in range(count))


def test_mutated_files_are_never_read_more_liberally_than_by_safetensors(memory_path):
    assert 600 < fuzz(memory_path, 0, 4000) < 3400


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(1, 11))
def test_a_million_mutated_files(memory_path, seed, tally):
    accepted = fuzz(memory_path, seed, 100_000)
    assert accepted > 15_000
    tally("mutated file against safe_open", trials=100_000, accepted=accepted)
