"""A corpus of hostile headers: each is refused by a typed error, fast and in little memory."""

import json

import optim_checkpoint as oc
import pytest
from optim_checkpoint._header import parse_header, read_header

OK = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}


def raw_header(text, data=4, length=None):
    """Return a file with this header text."""
    body = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    size = len(body) if length is None else length
    return size.to_bytes(8, "little") + body + bytes(data)


def one(data=4, **fields):
    """Return a file with one tensor, some of whose fields are replaced."""
    return raw_header(json.dumps({"a": {**OK, **fields}}), data)


def header(document, data=4):
    return raw_header(json.dumps(document), data)


U4 = [0, 4]
HEADERS = {
    "empty file": b"",
    "seven bytes": b"\0" * 7,
    "length only": (2).to_bytes(8, "little"),
    "length of zero": raw_header("{}", 0, 0),
    "length of one": raw_header("{}", 0, 1),
    "length of 2**64-1": raw_header("{}", 0, 2**64 - 1),
    "length of 2**63": raw_header("{}", 0, 2**63),
    "length of the limit of the format": raw_header("{}", 0, 100_000_000),
    "length past the end": raw_header("{}", 0, 3),
    "not an object": raw_header("[]", 0),
    "a string": raw_header('"a"', 0),
    "leading space": raw_header(" {}", 0),
    "byte order mark": raw_header("\ufeff{}", 0),
    "trailing newline": raw_header("{}\n", 0),
    "trailing nul": raw_header("{}\0\0", 0),
    "two documents": raw_header("{}{}", 0),
    "cut": raw_header('{"a":', 0),
    "unclosed string": raw_header('{"a', 0),
    "escaped quotes without end": raw_header('{"' + '\\"' * 500_000, 0),
    "comment": raw_header("{/**/}", 0),
    "single quotes": raw_header("{'a':1}", 0),
    "not UTF-8": raw_header(b'{"\xff":1}', 0),
    "overlong UTF-8": raw_header(b'{"\xc0\x80":1}', 0),
    "raw surrogate": raw_header('{"\ud800":1}', 0),
    "escaped surrogate": raw_header('{"\\ud800":' + json.dumps(OK) + "}"),
    "duplicate tensor": raw_header(f'{{"a":{json.dumps(OK)},"a":{json.dumps(OK)}}}'),
    "duplicate field": raw_header(
        '{"a":{"dtype":"U8","dtype":"I8","shape":[4],"data_offsets":[0,4]}}'
    ),
    "duplicate metadata": raw_header('{"__metadata__":{"a":"1","a":"2"}}', 0),
    "two metadata": raw_header('{"__metadata__":{},"__metadata__":{}}', 0),
    "metadata list": header({"__metadata__": []}, 0),
    "metadata number": header({"__metadata__": {"a": 1}}, 0),
    "metadata nested": header({"__metadata__": {"a": {}}}, 0),
    "metadata of 9 MiB": header({"__metadata__": {"a": "x" * (9 << 20)}}, 0),
    "deep lists": raw_header('{"a":' + "[" * 100_000 + "]" * 100_000 + "}", 0),
    "deep objects": raw_header('{"a":' * 100_000 + "1" + "}" * 100_000, 0),
    "nesting of nine": raw_header('{"a":' + "[" * 9 + "]" * 9 + "}", 0),
    "a million empty lists": raw_header('{"a":[' + "[]," * 2_000_000 + "[]]}", 0),
    "a million empty objects": raw_header('{"a":[' + "{}," * 2_000_000 + "{}]}", 0),
    "three million numbers": raw_header('{"a":[' + "99," * 3_000_000 + "9]}", 0),
    "300,000 tensors": raw_header(
        "{"
        + ",".join(
            f'"{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for i in range(300_000)
        )
        + "}",
        0,
    ),
    "not a number": raw_header('{"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,4]}}'),
    "infinity": raw_header('{"a":{"dtype":"U8","shape":[Infinity],"data_offsets":[0,4]}}'),
    "float dimension": one(shape=[4.0]),
    "exponent": raw_header('{"a":{"dtype":"U8","shape":[4e0],"data_offsets":[0,4]}}'),
    "1e999": raw_header('{"a":{"dtype":"U8","shape":[1e999],"data_offsets":[0,4]}}'),
    "integer of 5000 digits": raw_header(
        '{"a":{"dtype":"U8","shape":[' + "9" * 5000 + '],"data_offsets":[0,4]}}'
    ),
    "integer of a million digits": raw_header('{"a":' + "9" * 1_000_000 + "}", 0),
    "boolean dimension": one(shape=[True, 4]),
    "string dimension": one(shape=["4"]),
    "null dimension": one(shape=[None]),
    "negative dimension": one(shape=[-4]),
    "two negative dimensions": one(shape=[-2, -2]),
    "dimension of 2**49": one(shape=[2**49, 0], data_offsets=[0, 0], data=0),
    "huge empty shape": one(shape=[0, 2**40, 2**40], data_offsets=[0, 0], data=0),
    "product beyond 2**64": one(shape=[2**32, 2**32]),
    "product that wraps to 4": one(shape=[2**62 + 1, 4]),
    "three million dimensions": one(shape=[1] * 3_000_000, data_offsets=[0, 1], data=1),
    "a shape of ever more": one(shape=[2] * 2_000_000, data_offsets=[0, 1], data=1),
    "shape object": one(shape={}),
    "shape null": one(shape=None),
    "shape too small": one(shape=[3]),
    "shape too large": one(shape=[5]),
    "unknown dtype": one(dtype="U4"),
    "dtype of four bits": one(dtype="F4", shape=[8]),
    "dtype in lower case": one(dtype="u8"),
    "dtype number": one(dtype=8),
    "dtype list": one(dtype=["U8"]),
    "dtype null": one(dtype=None),
    "missing dtype": header({"a": {"shape": [4], "data_offsets": U4}}),
    "missing shape": header({"a": {"dtype": "U8", "data_offsets": U4}}),
    "missing offsets": header({"a": {"dtype": "U8", "shape": [4]}}),
    "unknown field": one(extra=1),
    "info as list": header({"a": ["U8", [4], U4]}),
    "info as string": header({"a": "U8"}),
    "info null": header({"a": None}),
    "one offset": one(data_offsets=[4]),
    "three offsets": one(data_offsets=[0, 2, 4]),
    "offsets object": one(data_offsets={"begin": 0}),
    "offsets reversed": one(data_offsets=[4, 0]),
    "offset negative": one(data_offsets=[-4, 0]),
    "offset minus zero": raw_header('{"a":{"dtype":"U8","shape":[0],"data_offsets":[-0,0]}}', 0),
    "dimension minus zero": raw_header('{"a":{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}}', 0),
    "offset float": one(data_offsets=[0, 4.0]),
    "offset boolean": one(data_offsets=[False, 4]),
    "offset string": one(data_offsets=["0", "4"]),
    "offset of 2**63": one(data_offsets=[2**63, 2**63 + 4]),
    "offset beyond the file": one(data_offsets=[4, 8]),
    "hole at the start": one(data_offsets=[1, 5], data=5),
    "hole in the middle": header({"a": OK, "b": {**OK, "data_offsets": [5, 9]}}, 9),
    "overlap": header({"a": OK, "b": {**OK, "data_offsets": [2, 6]}}, 6),
    "same range twice": header({"a": OK, "b": OK}),
    "trailing data": one(data=5),
    "missing data": one(data=3),
    "empty tensor past the end": one(shape=[0], data_offsets=[9, 9], data=4),
    "empty name": header({"": OK}),
    "name with nul": header({"a\0b": OK}),
    "name with newline": header({"a\nb": OK}),
    "name with escape": header({"a\x1b[2J": OK}),
    "name with C1 control": header({"a\x9bb": OK}),
    "name of 2000 bytes": header({"x" * 2000: OK}),
    "header without tensors but data": raw_header("{}", 4),
}  # fmt: skip


def parse_file(raw):
    return parse_header(raw[: 8 + min(int.from_bytes(raw[:8], "little"), len(raw))], len(raw), "f")


def test_the_corpus_is_as_large_as_promised():
    assert len(HEADERS) >= 85


def test_the_base_of_the_corpus_is_sound():
    assert parse_file(one()).tensors["a"].shape == (4,)


@pytest.mark.parametrize("case", HEADERS)
def test_hostile_headers_are_refused(case, tmp_path):
    raw = HEADERS[case]
    with pytest.raises(oc.CorruptCheckpointError, match=r"^f[:,]"):
        parse_file(raw)
    (tmp_path / "f").write_bytes(raw)
    with (tmp_path / "f").open("rb") as file, pytest.raises(oc.CorruptCheckpointError):
        read_header(file.fileno(), len(raw), "f")


def test_every_header_is_refused_in_a_second_and_256_mib(measure_refusals, tally):
    measured = measure_refusals("header", HEADERS)
    for case, (seconds, peak) in measured.items():
        assert seconds < 1, case
        assert peak < 256 << 20, case
    tally(
        "hostile header",
        trials=len(measured),
        worst_ms=round(1000 * max(seconds for seconds, _ in measured.values())),
        worst_mib=max(peak for _, peak in measured.values()) >> 20,
    )


def test_names_from_files_cannot_steer_a_terminal(tmp_path):
    raw = header({"a\x1b[2J" + "x" * 500: OK})
    with pytest.raises(oc.CorruptCheckpointError) as caught:
        parse_file(raw)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 400
