"""A corpus of hostile manifests: each is refused by a typed error, fast and in little memory."""

import json

import optim_checkpoint as oc
import pytest
from optim_checkpoint import _manifest
from optim_checkpoint._digest import digest
from optim_checkpoint._json import dumps


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
    "lone surrogate": signed(train={"\ud800": 1}),
    "lone surrogate in a list": signed(train={"a": ["\udfff"]}),
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
    "version zero": signed(version=0),
    "version true": signed(version=True),
    "version text": signed(version="1"),
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


def test_the_corpus_is_as_large_as_promised():
    assert len(MANIFESTS) >= 60


def test_the_bases_of_the_corpus_are_sound():
    assert _manifest.parse(signed()).step == 1
    assert len(_manifest.parse(file_of()).files) == 1


@pytest.mark.parametrize("case", MANIFESTS)
def test_hostile_manifests_are_refused(case):
    with pytest.raises(oc.CorruptCheckpointError, match=r"^m: "):
        _manifest.parse(MANIFESTS[case], "m")


NEWER = {
    "reader": (
        signed(min_reader=2, version=2),
        "^m: needs a reader of format 2, this one has 1",
    ),
    "feature": (signed(features=["encryption"]), r"^m: needs the features \['encryption'\], which"),
}


@pytest.mark.parametrize("case", NEWER)
def test_what_a_newer_release_wrote_is_not_damage(run_folder, load, case):
    """A run that went back to an older release must not go on from an older step unasked."""
    raw, message = NEWER[case]
    with pytest.raises(oc.CheckpointError, match=message) as caught:
        _manifest.parse(raw, "m")
    assert not isinstance(caught.value, oc.CorruptCheckpointError)
    (run_folder / "step-00000002" / "manifest.json").write_bytes(raw)
    for look in (load, oc.latest_step):
        with pytest.raises(oc.CheckpointError, match="update"):
            look(run_folder)


def test_every_manifest_is_refused_in_a_second_and_256_mib(measure_refusals, tally):
    measured = measure_refusals("manifest", MANIFESTS)
    for case, (seconds, peak) in measured.items():
        assert seconds < 1, case
        assert peak < 256 << 20, case
    tally(
        "hostile manifest",
        trials=len(measured),
        worst_ms=round(1000 * max(seconds for seconds, _ in measured.values())),
        worst_mib=max(peak for _, peak in measured.values()) >> 20,
    )
