# pyright: strict
"""The manifest: the commit record of a generation.

It names every file with its size and digests, and holds what safetensors cannot: names, structure,
typed scalars. It is canonical JSON with a digest of itself, so that exactly one sequence of bytes
is accepted for one content and any flipped bit shows.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from optim_checkpoint._digest import ALGORITHM, digest
from optim_checkpoint._errors import CorruptCheckpointError, UnsupportedStateError, shown
from optim_checkpoint._json import Limits, as_array, as_object, dumps, loads

FORMAT = "optim-checkpoint"
VERSION = 1
NAME = "manifest.json"
MAX_MANIFEST = 64 << 20
MAX_FILES = 4096
PARTS = ("model", "optim", "train")
_FILE = re.compile(r"(model|optim|train)/([A-Za-z0-9][A-Za-z0-9._-]{0,200}\.safetensors)\Z")
_HEX = re.compile(r"[0-9a-f]{32}\Z")
_STEP = re.compile(r"(0|[1-9][0-9]{0,18})\Z")
_REQUIRED = {"format", "version", "min_reader", "features", "step", "framework", "digest", "files"}


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What the manifest says about one file."""

    part: str
    base: str
    size: int
    header: str
    tensors: Mapping[str, str]

    @property
    def name(self) -> str:
        """Path inside the generation."""
        return f"{self.part}/{self.base}"


@dataclass(frozen=True, slots=True)
class Manifest:
    """A checked manifest.

    Attributes:
        step: The training step.
        framework: Name and versions of what wrote it.
        files: The files, in the order of the manifest.
        sections: Everything a framework face stored: "model", "optimizer", "train".
        checkpoint_id: The manifest's digest.
    """

    step: int
    framework: Mapping[str, object]
    files: tuple[FileRecord, ...]
    sections: Mapping[str, object]
    checkpoint_id: str


def build(
    step: int,
    framework: Mapping[str, object],
    files: list[dict[str, object]],
    sections: Mapping[str, object],
) -> bytes:
    """Return the bytes of a manifest."""
    body: dict[str, object] = {
        "format": FORMAT,
        "version": VERSION,
        "min_reader": VERSION,
        "features": [],
        "step": str(step),
        "framework": dict(framework),
        "digest": ALGORITHM,
        "files": files,
        **sections,
    }
    body["self_digest"] = digest(dumps(body))
    raw = dumps(body)
    if len(raw) > MAX_MANIFEST:
        raise UnsupportedStateError(
            "the state", f"needs a manifest of {len(raw)} bytes, the limit is {MAX_MANIFEST}"
        )
    return raw


def parse(raw: bytes, file: str = NAME) -> Manifest:
    """Check the bytes of a manifest.

    Raises:
        CorruptCheckpointError: If anything in it is not as `build` writes it.
    """
    if not raw.isascii():
        raise CorruptCheckpointError(file, "holds bytes that are not ASCII")
    body = as_object(loads(raw, file=file, limits=Limits(MAX_MANIFEST, 200)))
    if body is None:
        raise CorruptCheckpointError(file, "is not an object")
    if dumps(body) != raw:
        raise CorruptCheckpointError(file, "is not canonical JSON: it was edited or damaged")
    recorded = body.pop("self_digest", None)
    actual = digest(dumps(body))
    if recorded != actual:
        raise CorruptCheckpointError(
            file, f"self_digest is {shown(recorded)}, its content has {actual}"
        )
    missing = _REQUIRED - body.keys()
    if missing:
        raise CorruptCheckpointError(file, f"lacks {', '.join(sorted(missing))}")
    if body["format"] != FORMAT:
        raise CorruptCheckpointError(file, f"format is {shown(body['format'])}, not {FORMAT!r}")
    _check_version(body, file)
    step = body["step"]
    if not isinstance(step, str) or not _STEP.match(step):
        raise CorruptCheckpointError(file, f"step is {shown(step)}")
    framework = as_object(body["framework"])
    if framework is None:
        raise CorruptCheckpointError(file, f"framework is {shown(body['framework'])}")
    sections = {key: value for key, value in body.items() if key not in _REQUIRED}
    return Manifest(
        int(step),
        framework,
        _files(body["files"], file),
        sections,
        actual,
    )


def _check_version(body: Mapping[str, object], file: str) -> None:
    for key in ("version", "min_reader"):
        value = body[key]
        if type(value) is not int or value < 1:
            raise CorruptCheckpointError(file, f"{key} is {shown(value)}")
    least = cast("int", body["min_reader"])
    if least > VERSION:
        raise CorruptCheckpointError(
            file, f"needs a reader of format {least}, this one reads {VERSION}: update the package"
        )
    features = body["features"]
    if features != []:
        raise CorruptCheckpointError(
            file, f"needs the features {shown(features)}, which this reader lacks: update it"
        )
    if body["digest"] != ALGORITHM:
        raise CorruptCheckpointError(
            file, f"digest is {shown(body['digest'])}, this reader has {ALGORITHM}"
        )


def _files(value: object, file: str) -> tuple[FileRecord, ...]:
    listed = as_array(value)
    if listed is None:
        raise CorruptCheckpointError(file, f"files is {shown(value)}")
    if len(listed) > MAX_FILES:
        raise CorruptCheckpointError(file, f"{len(listed)} files, the limit is {MAX_FILES}")
    records: list[FileRecord] = []
    seen: set[str] = set()
    for item in listed:
        fields = as_object(item) or {}
        if fields.keys() != {"name", "size", "header", "tensors"}:
            raise CorruptCheckpointError(file, f"the file entry {shown(item)} is malformed")
        name, size, header, tensors = (fields[key] for key in ("name", "size", "header", "tensors"))
        match = _FILE.match(name) if isinstance(name, str) else None
        if match is None or match.string in seen:
            raise CorruptCheckpointError(file, f"the file name {shown(name)} is not allowed")
        seen.add(match.string)
        if type(size) is not int or not 0 < size < 1 << 63:
            raise CorruptCheckpointError(file, f"{shown(name)} has the size {shown(size)}")
        if not isinstance(header, str) or not _HEX.match(header):
            raise CorruptCheckpointError(file, f"{shown(name)} has no header digest")
        # A reader that verifies must not accept a tensor whose digest was taken away.
        digests = as_object(tensors)
        if digests is None or not all(
            isinstance(text, str) and _HEX.match(text) for text in digests.values()
        ):
            raise CorruptCheckpointError(file, f"{shown(name)} lacks a tensor digest")
        records.append(
            FileRecord(match[1], match[2], size, header, cast("dict[str, str]", digests))
        )
    return tuple(records)
