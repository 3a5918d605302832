# pyright: strict
"""Strict reading of a safetensors header.

The format is an 8-byte little-endian length N, N bytes of JSON that map each name to its dtype,
shape and byte range, and the data. The library accepts more than the format allows (duplicate
names, leading space, any number of dimensions); this reader accepts less than the library, and a
differential test holds it to that.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from optim_checkpoint._errors import CorruptCheckpointError, shown
from optim_checkpoint._json import Limits, as_array, as_object, loads
from optim_checkpoint._reading import read_some

BITS: Mapping[str, int] = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E5M2FNUZ": 8,
    "F8_E4M3FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
METADATA = "__metadata__"
ALIGNMENT = 64
MAX_HEADER = 16 << 20
MAX_TENSORS = 200_000
MAX_METADATA = 8 << 20
MAX_DEPTH = 8
MAX_DIMENSION = 1 << 48
MAX_BYTES = (1 << 63) - 1
MAX_NAME = 1024
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a file: its dtype name, shape and byte range counted from the data."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """Bytes of data."""
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header: where the data starts, what it holds, and the raw bytes it came from."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    data_start: int
    raw: bytes


def element_count(shape: tuple[int, ...]) -> int:
    """Return the number of elements of `shape`."""
    count = 1
    for size in shape:
        count *= size
    return count


def _natural(value: object, limit: int) -> int | None:
    # bool is an int in Python, and `true` is no offset.
    if type(value) is int and 0 <= value <= limit:
        return value
    return None


def _tensor(file: str, name: str, value: object) -> TensorInfo:
    def bad(detail: str) -> CorruptCheckpointError:
        return CorruptCheckpointError(file, detail, tensor=name)

    fields = as_object(value)
    if fields is None:
        raise bad("is not described by an object")
    if fields.keys() != {"dtype", "shape", "data_offsets"}:
        raise bad(f"has the fields {shown(sorted(fields))}, not dtype, shape and data_offsets")
    dtype = fields["dtype"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise bad(f"has the unknown dtype {shown(dtype)}")
    listed = as_array(fields["shape"])
    if listed is None:
        raise bad(f"has the shape {shown(fields['shape'])}")
    fault = shape_fault(listed)
    if fault is not None:
        raise bad(fault)
    shape = tuple(cast("list[int]", listed))
    offsets = fields["data_offsets"]
    pair = as_array(offsets) or []
    if len(pair) != 2:
        raise bad(f"has the data_offsets {shown(offsets)}")
    begin, end = (_natural(offset, MAX_BYTES) for offset in pair)
    if begin is None or end is None or end < begin:
        raise bad(f"has the data_offsets {shown(offsets)}")
    nbytes = element_count(shape) * BITS[dtype] // 8
    if end - begin != nbytes:
        raise bad(
            f"occupies {end - begin} bytes, but {dtype} of shape "
            f"{shown(list(shape))} takes {nbytes}"
        )
    return TensorInfo(dtype, shape, begin, end)


def shape_fault(shape: Sequence[object]) -> str | None:
    """Say why no tensor may have a shape, or return None."""
    extent = 1
    for dim in shape:
        size = _natural(dim, MAX_DIMENSION)
        if size is None:
            return f"has the dimension {shown(dim)}, the limit is {MAX_DIMENSION}"
        # Zero counts as one, or [0, 2**48, 2**48, ...] would pass with no data at all.
        extent *= max(size, 1)
        if extent > MAX_BYTES:
            return "has a shape too large for any file"
    return None


def is_name(name: str) -> bool:
    """Say whether `name` may name a tensor: not empty, bounded, free of control characters."""
    return bool(name) and len(name.encode("utf-8")) <= MAX_NAME and not _CONTROL.search(name)


def header_length(prefix: bytes, size: int, file: str, limit: int = MAX_HEADER) -> int:
    """Return N of a file of `size` bytes that starts with `prefix`, or refuse it."""
    if len(prefix) < 8:
        raise CorruptCheckpointError(file, f"{size} bytes are too few for a safetensors file")
    length = int.from_bytes(prefix[:8], "little")
    if length > limit:
        raise CorruptCheckpointError(file, f"header of {length} bytes, the limit is {limit}")
    if length < 2 or length > size - 8:
        raise CorruptCheckpointError(file, f"header of {length} bytes in a file of {size}")
    return length


def parse_header(raw: bytes, size: int, file: str, limit: int = MAX_HEADER) -> Header:
    """Check the first 8+N bytes of a file of `size` bytes.

    Args:
        raw: Exactly the length prefix and the header.
        size: Size of the whole file.
        file: What to call it in an error.
        limit: Greatest header accepted.

    Returns:
        The header, with every rule of the format and every limit of this module checked.

    Raises:
        CorruptCheckpointError: At the first rule that does not hold.
    """
    length = header_length(raw, size, file, limit)
    body = raw[8:]
    if len(body) != length:
        raise CorruptCheckpointError(file, f"header cut at {len(body)} of {length} bytes")
    if body[:1] != b"{":
        raise CorruptCheckpointError(file, "the header does not start with {")
    text = body.rstrip(b" ")
    if text[-1:] != b"}":
        raise CorruptCheckpointError(file, "the header is padded with something else than spaces")
    document = loads(text, file=file, limits=Limits(limit, MAX_DEPTH))
    # The first byte is a brace, so the document is an object.
    fields = cast("dict[str, object]", document)
    metadata = _metadata(file, fields.pop(METADATA, None))
    if len(fields) > MAX_TENSORS:
        raise CorruptCheckpointError(file, f"{len(fields)} tensors, the limit is {MAX_TENSORS}")
    tensors: dict[str, TensorInfo] = {}
    for name, value in fields.items():
        if not is_name(name):
            raise CorruptCheckpointError(
                file, f"the name {shown(name)} is empty, over {MAX_NAME} bytes or holds controls"
            )
        tensors[name] = _tensor(file, name, value)
    position = 0
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if info.begin != position:
            kind = "overlaps another tensor" if info.begin < position else "follows a hole"
            raise CorruptCheckpointError(file, f"{kind} at byte {info.begin}", tensor=name)
        position = info.end
    if position != size - 8 - length:
        raise CorruptCheckpointError(
            file,
            f"the header describes {position} bytes of data, the file holds {size - 8 - length}",
        )
    return Header(tensors, metadata, 8 + length, raw)


def _metadata(file: str, value: object) -> dict[str, str]:
    if value is None:
        return {}
    fields = as_object(value)
    if fields is None:
        raise CorruptCheckpointError(file, f"{METADATA} is not an object")
    result: dict[str, str] = {}
    total = 0
    for key, text in fields.items():
        if not isinstance(text, str):
            raise CorruptCheckpointError(file, f"{METADATA} {shown(key)} is not a string")
        total += len(key) + len(text)
        result[key] = text
    if total > MAX_METADATA:
        raise CorruptCheckpointError(file, f"{METADATA} of {total} characters is too long")
    return result


def read_header(fd: int, size: int, file: str) -> Header:
    """Read and check the header of the open file `fd` without moving its position."""
    prefix = read_some(fd, 8, 0, file)
    length = header_length(prefix, size, file)
    raw = prefix
    while len(raw) < 8 + length:
        more = read_some(fd, 8 + length - len(raw), len(raw), file)
        if not more:
            break
        raw += more
    return parse_header(raw, size, file)
