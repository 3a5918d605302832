"""A corpus of hostile files: each is refused by a typed error, fast and in little memory."""

import json
import os
import subprocess
import sys
import time

import optim_checkpoint as oc
import pytest
from optim_checkpoint import _manifest
from optim_checkpoint._digest import digest
from optim_checkpoint._header import parse_header, read_header
from optim_checkpoint._json import dumps

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
    "33 dimensions": one(shape=[1] * 33, data_offsets=[0, 1], data=1),
    "a thousand dimensions": one(shape=[1] * 1000, data_offsets=[0, 1], data=1),
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


def body_of(**changes):
    """Return the fields of a sound manifest without files, some replaced."""
    body = {
        "format": "optim-checkpoint",
        "version": 1,
        "min_reader": 1,
        "features": [],
        "step": "1",
        "framework": {},
        "digest": "xxh3-128",
        "files": [],
        "train": {},
    }
    body.update(changes)
    return {key: value for key, value in body.items() if value is not ...}


def signed(**changes):
    """Return a manifest whose own digest is right."""
    body = body_of(**changes)
    body["self_digest"] = digest(dumps(body))
    return dumps(body)


def file_of(**changes):
    record = {
        "name": "model/model.safetensors",
        "size": 100,
        "header": "0" * 32,
        "tensors": {"a": "0" * 32},
    }
    record.update(changes)
    return signed(files=[{key: value for key, value in record.items() if value is not ...}])


NAMES = [
    "/etc/passwd",
    "../other/model.safetensors",
    "model/../../x.safetensors",
    "model/model.safetensors\0",
    "model\\x.safetensors",
    "C:/model.safetensors",
    "model/.hidden.safetensors",
    "model/sub/x.safetensors",
    "model/x.bin",
    "other/x.safetensors",
    "model/x.safetensors\n",
    "model/" + "x" * 300 + ".safetensors",
    "",
    5,
    None,
]
MANIFESTS = {
    "empty": b"",
    "not JSON": b"hello",
    "list": b"[]",
    "null": b"null",
    "number": b"1",
    "empty object": b"{}",
    "spaces": signed() + b" ",
    "not canonical": json.dumps(json.loads(signed())).encode(),
    "unsorted": b'{"z":1,"a":2}',
    "not ASCII": signed().replace(b'"train":{}', '"train":{"ü":1}'.encode()),
    "other escape": signed().replace(b'"step"', b'"st\\u0065p"'),
    "duplicate key": signed()[:-1] + b',"version":1}',
    "no digest": dumps(body_of()),
    "digest null": dumps({**body_of(), "self_digest": None}),
    "wrong digest": dumps({**body_of(), "self_digest": "0" * 32}),
    "digest of another": signed().replace(b'"step":"1"', b'"step":"2"'),
    "float": signed().replace(b'"version":1', b'"version":1.0'),
    "not a number": signed().replace(b'"version":1', b'"version":NaN'),
    "deep": b"[" * 300_000 + b"]" * 300_000,
    "two million lists": b"[" + b"[]," * 2_000_000 + b"[]]",
    "too large": b"[" + b" " * (65 << 20) + b"]",
    "other format": signed(format="pickle"),
    "newer reader": signed(min_reader=2, version=2),
    "version zero": signed(version=0),
    "version true": signed(version=True),
    "version text": signed(version="1"),
    "unknown feature": signed(features=["encryption"]),
    "features object": signed(features={}),
    "unknown digest": signed(digest="none"),
    "step number": signed(step=1),
    "step negative": signed(step="-1"),
    "step with zeros": signed(step="01"),
    "step too long": signed(step="9" * 30),
    "missing step": signed(step=...),
    "missing files": signed(files=...),
    "framework list": signed(framework=[]),
    "files object": signed(files={}),
    "file text": signed(files=["model/model.safetensors"]),
    "5000 files": signed(files=[{}] * 5000),
    "size text": file_of(size="100"),
    "size negative": file_of(size=-1),
    "size zero": file_of(size=0),
    "size boolean": file_of(size=True),
    "header digest null": file_of(header=None),
    "header digest short": file_of(header="00"),
    "header digest in upper case": file_of(header="A" * 32),
    "tensors list": file_of(tensors=[]),
    "tensor digest null": file_of(tensors={"a": None}),
    "tensor digest empty": file_of(tensors={"a": ""}),
    "no tensors": file_of(tensors=...),
    "unknown field of a file": file_of(mode=0o777),
    "one file twice": signed(files=json.loads(file_of())["files"] * 2),
    **{f"file name {name!a:.40}": file_of(name=name) for name in NAMES},
}  # fmt: skip


def parse_file(raw):
    parse_header(raw[: 8 + min(int.from_bytes(raw[:8], "little"), len(raw))], len(raw), "f")


def test_the_corpus_is_as_large_as_promised():
    assert len(HEADERS) + len(MANIFESTS) >= 150


def test_the_bases_of_the_corpus_are_sound():
    parse_file(one())
    assert _manifest.parse(signed()).step == 1
    assert len(_manifest.parse(file_of()).files) == 1


@pytest.mark.parametrize("case", HEADERS)
def test_hostile_headers_are_refused(case, tmp_path):
    raw = HEADERS[case]
    start = time.process_time()
    with pytest.raises(oc.CorruptCheckpointError, match=r"^f[:,]"):
        parse_file(raw)
    (tmp_path / "f").write_bytes(raw)
    with (tmp_path / "f").open("rb") as file, pytest.raises(oc.CorruptCheckpointError):
        read_header(file.fileno(), len(raw), "f")
    assert time.process_time() - start < 2


@pytest.mark.parametrize("case", MANIFESTS)
def test_hostile_manifests_are_refused(case):
    start = time.process_time()
    with pytest.raises(oc.CorruptCheckpointError, match=r"^m: "):
        _manifest.parse(MANIFESTS[case], "m")
    assert time.process_time() - start < 1


MEASURE = """
import sys, time
from optim_checkpoint import CorruptCheckpointError, _header, _manifest
kind, path = sys.argv[1:]
before = time.process_time()
try:
    with open(path, "rb") as file:
        if kind == "header":
            size = file.seek(0, 2)
            _header.read_header(file.fileno(), size, "f")
        else:
            _manifest.parse(file.read(), "m")
except CorruptCheckpointError:
    seconds = time.process_time() - before
    # ru_maxrss would count the parent that forked us.
    with open("/proc/self/status") as status:
        peak = [line.split()[1] for line in status if line.startswith("VmHWM:")]
    print(seconds, *peak)
"""
HEAVY = [
    ("header", "escaped quotes without end"),
    ("header", "a million empty lists"),
    ("header", "a million empty objects"),
    ("header", "three million numbers"),
    ("header", "300,000 tensors"),
    ("header", "metadata of 9 MiB"),
    ("manifest", "two million lists"),
    ("manifest", "too large"),
    ("manifest", "deep"),
]


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.parametrize(("kind", "case"), HEAVY)
def test_the_heaviest_take_under_a_second_and_256_mib(kind, case, tmp_path):
    path = tmp_path / "raw"
    path.write_bytes((HEADERS if kind == "header" else MANIFESTS)[case])
    out = subprocess.run(
        [sys.executable, "-c", MEASURE, kind, str(path)], capture_output=True, text=True, check=True
    )
    seconds, peak = map(float, out.stdout.split())
    assert seconds < 1
    assert peak * 1024 < 256 << 20


def replace_file(run_folder, make):
    path = run_folder / "step-00000002" / "model" / "model.safetensors"
    raw = path.read_bytes()
    path.unlink()
    make(path, raw)


def as_symlink(path, raw):
    target = path.parent.parent.parent / "elsewhere"
    target.write_bytes(raw)
    path.symlink_to(target)


ZOO = {
    "file is a symbolic link": (as_symlink, "is a symbolic link"),
    "file is a pipe": (lambda path, raw: os.mkfifo(path), "is not a regular file"),
    "file is a folder": (lambda path, raw: path.mkdir(), "is not a regular file"),
    "file is missing": (lambda path, raw: None, "cannot be opened"),
    "file is empty": (lambda path, raw: path.touch(), "has 0 bytes"),
    "file is longer": (lambda path, raw: path.write_bytes(raw + b"\0"), "bytes, .* were written"),
}


@pytest.mark.parametrize("case", ZOO)
def test_a_damaged_folder_is_skipped_for_the_one_before(case, run_folder, load, check):
    make, message = ZOO[case]
    replace_file(run_folder, make)
    with pytest.raises(oc.CorruptCheckpointError, match=message):
        oc.verify(run_folder)
    with pytest.warns(oc.CheckpointWarning, match=f"skipped a damaged checkpoint: .*{message}"):
        chosen = load(run_folder)
    check(chosen.value, 1)
    assert [item.path.name for item in chosen.skipped] == ["step-00000002"]
    assert oc.latest_step(run_folder) == 1


def test_a_linked_part_folder_is_refused(run_folder):
    part = run_folder / "step-00000002" / "model"
    part.rename(run_folder / "elsewhere")
    part.symlink_to(run_folder / "elsewhere")
    with pytest.raises(oc.CorruptCheckpointError, match="is not a folder that can be opened"):
        oc.verify(run_folder, 2)


def test_a_renamed_generation_is_refused(run_folder):
    (run_folder / "step-00000002").rename(run_folder / "step-00000009")
    with pytest.raises(oc.CorruptCheckpointError, match="is of step 2; the folder was renamed"):
        oc.verify(run_folder, 9)


def test_a_boolean_that_is_neither_is_refused_even_with_its_digest(tmp_path, load):
    from optim_checkpoint._commit import Document, commit
    from optim_checkpoint._shard import Entry

    entry = Entry("flags", "BOOL", (2,), lambda: memoryview(b"\1\2"))
    commit(tmp_path, Document(1, {}, {}, {"model": [entry]}))
    with pytest.raises(oc.CorruptCheckpointError, match="a boolean is neither 0 nor 1"):
        load(tmp_path)


def test_when_everything_is_damaged_the_newest_says_why(run_folder, load):
    for step in (1, 2):
        (run_folder / f"step-{step:08d}" / "manifest.json").write_bytes(b"{}")
    with pytest.raises(oc.CorruptCheckpointError, match=r"step-00000002/manifest\.json"):
        load(run_folder)
    assert oc.latest_step(run_folder) is None


def test_what_is_not_there_is_said(tmp_path, run_folder, load):
    with pytest.raises(oc.CheckpointNotFoundError, match="has no step 7; newest steps: 1, 2"):
        load(run_folder, 7)
    with pytest.raises(oc.CheckpointNotFoundError, match="is not a folder of checkpoints"):
        load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(oc.CheckpointNotFoundError, match="holds no checkpoint"):
        load(tmp_path / "empty")
    assert oc.steps(tmp_path / "nowhere") == []
    assert oc.latest_step(tmp_path / "nowhere") is None


def test_names_from_files_cannot_steer_a_terminal(tmp_path):
    raw = header({"a\x1b[2J" + "x" * 500: OK})
    with pytest.raises(oc.CorruptCheckpointError) as caught:
        parse_file(raw)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 400
