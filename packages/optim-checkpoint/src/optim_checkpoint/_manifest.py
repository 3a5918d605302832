# pyright: strict
"""The manifest: the commit record of a generation.

It names every file with its size and digests, and holds what safetensors cannot: names, structure,
typed scalars. It is canonical JSON with a digest of itself, so that exactly one sequence of bytes
is accepted for one content and any flipped bit shows.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import cast

from optim_checkpoint._boxes import Offset, Shape
from optim_checkpoint._columns import COLUMNS
from optim_checkpoint._digest import ALGORITHM, digest
from optim_checkpoint._errors import (
    CheckpointError,
    CorruptCheckpointError,
    UnsupportedStateError,
    shown,
)
from optim_checkpoint._files import MAX_FILES
from optim_checkpoint._header import MAX_BYTES, MAX_DIMENSION
from optim_checkpoint._json import Limits, as_array, as_object, dumps, loads, measure
from optim_checkpoint._typed import EXACT

FORMAT = "optim-checkpoint"
VERSION = 1
NAME = "manifest.json"
MAX_MANIFEST = 1 << 30
# A large manifest may take memory in proportion to its bytes; what a save writes takes up to 17.
LIMITS = Limits(MAX_MANIFEST, 400, ratio=20)
PARTS = ("model", "optim", "train")
SHARDED = "sharded"
FEATURES = {SHARDED, COLUMNS, EXACT}
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
    offsets: Mapping[str, Offset]

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
        shards: For each part the tensors that are spread over files, with their whole shapes.
        checkpoint_id: The manifest's digest.
    """

    step: int
    framework: Mapping[str, object]
    files: tuple[FileRecord, ...]
    sections: Mapping[str, object]
    shards: Mapping[str, Mapping[str, Shape]]
    checkpoint_id: str


def build(
    step: int,
    framework: Mapping[str, object],
    files: list[dict[str, object]],
    sections: Mapping[str, object],
    shards: Mapping[str, Mapping[str, Shape]] | None = None,
    features: Collection[str] = (),
) -> bytes:
    """Return the bytes of a manifest.

    Args:
        step: The training step.
        framework: Name and versions of what writes it.
        files: What `FileRecord` holds of each file.
        sections: Everything a framework face stores.
        shards: The tensors that are spread over files; a reader must know of them.
        features: What else a reader must know.

    Raises:
        UnsupportedStateError: If no reader would take it, with the section that takes most of it.
    """
    body: dict[str, object] = {
        "format": FORMAT,
        "version": VERSION,
        "min_reader": VERSION,
        "features": sorted({*features, *(() if shards is None else (SHARDED,))}),
        "step": str(step),
        "framework": dict(framework),
        "digest": ALGORITHM,
        "files": files,
        **sections,
    }
    if shards is not None:
        body["shards"] = {
            part: {key: list(shape) for key, shape in shapes.items()}
            for part, shapes in shards.items()
        }
    body["self_digest"] = digest(dumps(body))
    raw = dumps(body)
    try:
        measure(raw, NAME, LIMITS)
    except CorruptCheckpointError as error:
        name, size = _largest(sections)
        raise UnsupportedStateError(
            name, f"takes {size} bytes of the manifest, which would hold {error.detail}"
        ) from None
    return raw


def _largest(sections: Mapping[str, object]) -> tuple[str, int]:
    """Return the path of what takes most bytes of a manifest, and how many."""
    sizes = {name: len(dumps(value)) for name, value in sections.items() if name != "train"}
    train = as_object(sections.get("train")) or {}
    sizes |= {name: len(dumps(value)) for name, value in train.items()}
    return max(sizes.items(), key=lambda item: item[1], default=("the state", 0))


def parse(raw: bytes, file: str = NAME) -> Manifest:
    """Check the bytes of a manifest.

    Raises:
        CorruptCheckpointError: If anything in it is not as `build` writes it.
        CheckpointError: If it needs a newer reader.
    """
    if not raw.isascii():
        raise CorruptCheckpointError(file, "holds bytes that are not ASCII")
    body = as_object(loads(raw, file=file, limits=LIMITS))
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
    sharded = SHARDED in cast("list[object]", body["features"])
    if sharded != ("shards" in body):
        raise CorruptCheckpointError(file, "shards and the feature 'sharded' come together")
    shards = _shards(body.pop("shards"), file) if sharded else {}
    sections = {key: value for key, value in body.items() if key not in _REQUIRED}
    return Manifest(
        int(step),
        framework,
        _files(body["files"], shards if sharded else None, file),
        sections,
        shards,
        actual,
    )


def _check_version(body: Mapping[str, object], file: str) -> None:
    for key in ("version", "min_reader"):
        value = body[key]
        if type(value) is not int or value < 1:
            raise CorruptCheckpointError(file, f"{key} is {shown(value)}")
    least = cast("int", body["min_reader"])
    if least > VERSION:
        # Not damage: what a newer release wrote must not be passed over for an older step.
        raise CheckpointError(
            f"{file}: needs a reader of format {least}, this one has {VERSION}: update the package"
        )
    features = as_array(body["features"])
    if features is None or any(type(name) is not str for name in features):
        raise CorruptCheckpointError(file, f"features is {shown(body['features'])}")
    known = sorted(FEATURES.intersection(cast("list[str]", features)))
    if features != known:
        raise CheckpointError(
            f"{file}: needs the features {shown(features)}, which this reader lacks: update it"
        )
    if body["digest"] != ALGORITHM:
        raise CorruptCheckpointError(
            file, f"digest is {shown(body['digest'])}, this reader has {ALGORITHM}"
        )


def _dimensions(value: object) -> tuple[int, ...] | None:
    listed = as_array(value)
    if listed is None:
        return None
    # bool is an int in Python, and `true` is no offset.
    numbers = [item for item in listed if type(item) is int and 0 <= item <= MAX_DIMENSION]
    return tuple(numbers) if len(numbers) == len(listed) else None


def _shards(value: object, file: str) -> dict[str, dict[str, Shape]]:
    result: dict[str, dict[str, Shape]] = {}
    for part, listed in (as_object(value) or {"": None}).items():
        keys = as_object(listed)
        if part not in PARTS or not keys:
            raise CorruptCheckpointError(file, f"the shards of {shown(part)} are malformed")
        for key, dims in keys.items():
            shape = _dimensions(dims)
            extent = 1
            for size in shape or ():
                extent *= size
            if shape is None or not 0 < extent <= MAX_BYTES:
                raise CorruptCheckpointError(
                    file, f"a sharded tensor has the shape {shown(dims)}", tensor=key
                )
            result.setdefault(part, {})[key] = shape
    return result


def _offsets(
    name: str, value: object, keys: Mapping[str, object], shapes: Mapping[str, Shape], file: str
) -> dict[str, Offset]:
    result: dict[str, Offset] = {}
    for key, dims in (as_object(value) or {"": None}).items():
        offset = _dimensions(dims)
        if key not in keys or key not in shapes or offset is None:
            raise CorruptCheckpointError(
                file, f"{shown(name)} places it at {shown(dims)}", tensor=key
            )
        if len(offset) != len(shapes[key]):
            raise CorruptCheckpointError(
                file, f"{shown(name)} places it at {shown(dims)} of {list(shapes[key])}", tensor=key
            )
        result[key] = offset
    return result


def _files(
    value: object, shards: Mapping[str, Mapping[str, Shape]] | None, file: str
) -> tuple[FileRecord, ...]:
    listed = as_array(value)
    if listed is None:
        raise CorruptCheckpointError(file, f"files is {shown(value)}")
    if len(listed) > MAX_FILES:
        raise CorruptCheckpointError(file, f"{len(listed)} files, the limit is {MAX_FILES}")
    records: list[FileRecord] = []
    seen: set[str] = set()
    for item in listed:
        fields = as_object(item) or {}
        offsets = fields.pop("offsets", None) if shards is not None else None
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
        shapes = (shards or {}).get(match[1], {})
        placed = {} if offsets is None else _offsets(match.string, offsets, digests, shapes, file)
        unplaced = digests.keys() & shapes.keys() - placed.keys()
        if unplaced:
            raise CorruptCheckpointError(
                file, f"{shown(name)} does not say where its shard lies", tensor=min(unplaced)
            )
        records.append(
            FileRecord(match[1], match[2], size, header, cast("dict[str, str]", digests), placed)
        )
    for part, shapes in (shards or {}).items():
        found = {key for record in records if record.part == part for key in record.offsets}
        for key in sorted(shapes.keys() - found):
            raise CorruptCheckpointError(file, "no file holds a shard of it", tensor=key)
    return tuple(records)
