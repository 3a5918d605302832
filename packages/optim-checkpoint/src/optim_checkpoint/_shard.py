# pyright: strict
"""Writing one safetensors file: streaming, byte-reproducible, every tensor 64-byte aligned.

Differs from `safetensors.serialize_file` in:
1. never more than one tensor in memory, with its digest taken from the very bytes written;
2. equal content gives equal bytes (the library's metadata order is random);
3. tensors whose size is a multiple of 64 come first and the header is padded, so that they can be
   mapped without a copy;
4. the file is new, reserved in full, and synced before it counts.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from optim_checkpoint import _fs
from optim_checkpoint._digest import digest, new_tensor_digest
from optim_checkpoint._errors import CorruptCheckpointError, UnsupportedStateError, shown
from optim_checkpoint._header import (
    ALIGNMENT,
    BITS,
    MAX_DEPTH,
    MAX_HEADER,
    MAX_NAME,
    METADATA,
    element_count,
    is_name,
    shape_fault,
)
from optim_checkpoint._json import Limits, dumps, measure

# What is hashed and then written at once: it stays in the processor's cache in between.
CHUNK = 1 << 20
# The disk writes while the next bytes are hashed and copied, not only in the final sync: 384 MiB
# took 0.11 s instead of 0.17 s, and 0.12 s in ranges of 64 MiB, which leave more to the sync.
WRITEBACK = 16 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor to write.

    Attributes:
        name: Its key in the file.
        dtype: Its safetensors dtype.
        shape: Its shape.
        read: Returns its bytes, little-endian in C order; called when they are written, and before
            that where an incremental save compares them.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], memoryview]

    @property
    def nbytes(self) -> int:
        """Bytes of data."""
        return element_count(self.shape) * BITS[self.dtype] // 8

    def data(self) -> memoryview:
        """Return the bytes.

        Raises:
            UnsupportedStateError: If they are not as many as were announced.
        """
        data = self.read().cast("B") if self.nbytes else memoryview(b"")
        if len(data) != self.nbytes:
            raise UnsupportedStateError(
                shown(self.name), f"holds {len(data)} bytes, {self.nbytes} were announced"
            )
        return data


@dataclass(frozen=True, slots=True)
class Layout:
    """The order of the tensors in a file and the bytes before them."""

    entries: tuple[Entry, ...]
    head: bytes
    size: int


def lay_out(entries: Sequence[Entry], metadata: Mapping[str, str]) -> Layout:
    """Decide where each tensor goes.

    Args:
        entries: The tensors, in any order.
        metadata: Strings for the header.

    Returns:
        The layout; the same for the same names, dtypes, shapes and metadata.
    """
    ordered = sorted(
        entries, key=lambda e: (e.nbytes % ALIGNMENT != 0, -BITS[e.dtype], e.name.encode("utf-8"))
    )
    document: dict[str, object] = {METADATA: dict(sorted(metadata.items()))}
    position = 0
    for entry in ordered:
        if entry.name == METADATA:
            raise UnsupportedStateError(
                METADATA,
                "a tensor cannot have this name, which safetensors reserves for what a file says "
                "of itself; rename it",
            )
        fault = shape_fault(entry.shape)
        if fault is not None:
            raise UnsupportedStateError(shown(entry.name)[1:-1], fault)
        if entry.name in document:
            raise UnsupportedStateError(shown(entry.name), "two tensors have this name")
        if not is_name(entry.name):
            raise UnsupportedStateError(
                shown(entry.name), f"a name must have 1 to {MAX_NAME} bytes and no controls"
            )
        document[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [position, position + entry.nbytes],
        }
        position += entry.nbytes
    text = dumps(document, sort=False)
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    try:
        measure(text, "its header", Limits(MAX_HEADER, MAX_DEPTH))
    except CorruptCheckpointError as error:
        # Of several tensors there are more files before that: this is one of very many dimensions.
        raise UnsupportedStateError(
            shown(ordered[0].name)[1:-1], f"cannot be stored: {error}"
        ) from None
    head = len(text).to_bytes(8, "little") + text
    return Layout(tuple(ordered), head, len(head) + position)


def write_shard(layout: Layout, name: str, folder: int) -> dict[str, object]:
    """Write, sync and close a new file.

    Args:
        layout: What to write.
        name: Its name in `folder`.
        folder: The open folder.

    Returns:
        What the manifest records: size, header digest and the digest of each tensor.

    Raises:
        OSError: Whatever the file system said; the file is then worthless.
    """
    digests: dict[str, str] = {}
    fd = _fs.ops.create(name, folder)
    closed = False
    written = started = len(layout.head)
    try:
        _fs.allocate(fd, layout.size)
        _fs.write_all(fd, memoryview(layout.head))
        for entry in layout.entries:
            data = entry.data()
            state = new_tensor_digest(entry.name, entry.dtype, entry.shape)
            for start in range(0, len(data), CHUNK):
                chunk = data[start : start + CHUNK]
                state.update(chunk)
                _fs.write_all(fd, chunk)
                written += len(chunk)
                if written - started >= WRITEBACK:
                    _fs.ops.start_writeback(fd, started, written - started)
                    started = written
            digests[entry.name] = state.hexdigest()
        _fs.ops.sync(fd)
        # Even a failed close releases the descriptor.
        closed = True
        _fs.ops.close(fd)
    finally:
        if not closed:
            os.close(fd)
    return {"size": layout.size, "header": digest(layout.head), "tensors": digests}
