# pyright: strict
"""Reading one generation: nothing is believed before its digest matched.

Every file is opened once, without following links, and read with `pread` into memory of our own, so
what is verified is what is used: a file that changes under the reader shows as damage.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self, cast

import numpy as np

from optim_checkpoint import _fs, _locks, _manifest, _parallel, _reading
from optim_checkpoint._boxes import Offset, Region, Shape, grid_fault, visible, whole
from optim_checkpoint._digest import digest, new_tensor_digest
from optim_checkpoint._errors import CorruptCheckpointError, shown
from optim_checkpoint._files import SHARDING, index_name, index_of, sharding_info
from optim_checkpoint._folder import GenerationName
from optim_checkpoint._garbage import kept
from optim_checkpoint._header import BITS, TensorInfo, element_count, read_header
from optim_checkpoint._manifest import FileRecord, Manifest

# Where a whole tensor goes in one piece, or parts of it.
Wanted = memoryview | Sequence[Region] | None
Sink = Callable[[str, str, TensorInfo], Wanted]
# Hashed while it is still in the processor's cache; what is only verified needs no more memory.
CHUNK = 1 << 20
# Tensors up to this size are read together: a call to read takes as long as their copy.
SMALL = 16 << 10
Item = tuple[str, TensorInfo, memoryview | None]


@dataclass(frozen=True, slots=True)
class StoredFile:
    """An open file of a generation with what counts of its checked header.

    The rest of the header is not kept: thousands of names may be links to one padded file.
    """

    record: FileRecord
    fd: int
    tensors: Mapping[str, TensorInfo]
    data_start: int

    @property
    def nbytes(self) -> int:
        """Bytes of data."""
        return self.record.size - self.data_start


def _scratch(own: threading.local, size: int) -> memoryview:
    """Return memory of this thread for bytes that nobody asked for as they lie in the file."""
    memory = getattr(own, "memory", None)
    if memory is None or len(memory) < size:
        memory = own.memory = memoryview(bytearray(max(size, CHUNK)))
    return memory[:size]


class Generation:
    """An open generation: manifest and headers checked, data not yet read.

    Args:
        root: The open folder of the run.
        name: Its step and index.
        unnamed: The folder in which it lies before it is committed. Its data cannot be read then:
            no more than one of its files is open at a time.

    Attributes:
        name: Its step and index.
        manifest: The checked manifest.
        files: Its open files.
        folders: Its open folders, by part.
    """

    @kept()
    def __init__(self, root: int, name: GenerationName, *, unnamed: str | None = None) -> None:
        self.name = name
        self._fetched: set[tuple[str, str]] = set()
        self._sealing = unnamed is not None
        self._stack = contextlib.ExitStack()
        self.files: list[StoredFile] = []
        try:
            self._folder = self._open_folder(unnamed or str(name), root, str(name))
            # Keeps retention away while we read; a file system without locks does without.
            release = _locks.share(self._folder)
            if release is not None:
                self._stack.callback(release)
            self.manifest = self._read_manifest()
            self.folders: dict[str, int] = {}
            for record in self.manifest.files:
                if record.part not in self.folders:
                    self.folders[record.part] = self._open_folder(
                        record.part, self._folder, f"{name}/{record.part}"
                    )
                self.files.append(self._open_file(record, self.folders[record.part]))
            self._index = self._whole_tensors()
            for part, folder in self.folders.items():
                self._check_index(part, folder)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def _open_folder(self, name: str, folder: int, file: str) -> int:
        fd = _reading.open_folder(name, folder, file)
        self._stack.callback(os.close, fd)
        return fd

    def _read_small(self, name: str, folder: int, file: str) -> bytes:
        fd, size = _reading.open_regular(name, folder, file)
        with _fs.opened(fd):
            if size > _manifest.MAX_MANIFEST:
                raise CorruptCheckpointError(
                    file, f"of {size} bytes, the limit is {_manifest.MAX_MANIFEST}"
                )
            raw = bytearray(size)
            _reading.read_into(fd, memoryview(raw), 0, file)
        return bytes(raw)

    def _read_manifest(self) -> Manifest:
        file = f"{self.name}/{_manifest.NAME}"
        manifest = _manifest.parse(self._read_small(_manifest.NAME, self._folder, file), file)
        if manifest.step != self.name.step:
            raise CorruptCheckpointError(
                file, f"is of step {manifest.step}; the folder was renamed or mixed up"
            )
        return manifest

    def _open_file(self, record: FileRecord, folder: int) -> StoredFile:
        file = f"{self.name}/{record.name}"
        fd, size = _reading.open_regular(record.base, folder, file)
        if self._sealing:
            with _fs.opened(fd):
                return self._check_file(record, fd, size, file)
        self._stack.callback(os.close, fd)
        return self._check_file(record, fd, size, file)

    def _check_file(self, record: FileRecord, fd: int, size: int, file: str) -> StoredFile:
        if size != record.size:
            raise CorruptCheckpointError(file, f"has {size} bytes, {record.size} were written")
        header = read_header(fd, size, file)
        actual = digest(header.raw)
        if actual != record.header:
            raise CorruptCheckpointError(
                file, f"the header's digest is {actual}, {record.header} was written"
            )
        if header.tensors.keys() != record.tensors.keys():
            names = shown(sorted(header.tensors.keys() ^ record.tensors.keys()))
            raise CorruptCheckpointError(file, f"header and manifest differ in {names}")
        # Other readers go by the header: it must not tell them another place than us.
        shapes = {key: info.shape for key, info in header.tensors.items()}
        expected = sharding_info(shapes, record.offsets) if record.offsets else None
        if header.metadata.get(SHARDING) != expected:
            raise CorruptCheckpointError(file, f"{SHARDING} is not what the manifest says")
        return StoredFile(record, fd, header.tensors, header.data_start)

    def _whole_tensors(self) -> dict[tuple[str, str], TensorInfo]:
        """Return what each key stands for; for shards, the tensor they make up."""
        index: dict[tuple[str, str], TensorInfo] = {}
        boxes: dict[tuple[str, str], list[tuple[Offset, Shape]]] = {}
        for stored in self.files:
            part, offsets = stored.record.part, stored.record.offsets
            file = f"{self.name}/{stored.record.name}"
            for key, info in stored.tensors.items():
                known = index.get((part, key))
                if key not in offsets:
                    if known is not None:
                        raise CorruptCheckpointError(file, "is in two files", tensor=key)
                    index[part, key] = info
                    continue
                shape = self.manifest.shards[part][key]
                if len(info.shape) != len(shape) or (known and known.dtype != info.dtype):
                    raise CorruptCheckpointError(
                        file,
                        f"a shard of {info.dtype}{list(info.shape)} is no part of "
                        f"{known.dtype if known else info.dtype}{list(shape)}",
                        tensor=key,
                    )
                nbytes = element_count(shape) * BITS[info.dtype] // 8
                index[part, key] = TensorInfo(info.dtype, shape, 0, nbytes)
                boxes.setdefault((part, key), []).append((offsets[key], info.shape))
        for (part, key), listed in boxes.items():
            fault = grid_fault(index[part, key].shape, listed)
            if fault is not None:
                raise CorruptCheckpointError(f"{self.name}/{part}", fault, tensor=key)
        return index

    def _check_index(self, part: str, folder: int) -> None:
        files = [stored for stored in self.files if stored.record.part == part]
        if len(files) == 1 or any(stored.record.offsets for stored in files):
            return
        file = f"{self.name}/{part}/{index_name(part)}"
        expected = index_of(
            (
                stored.record.base,
                {key: info.nbytes for key, info in stored.tensors.items()},
            )
            for stored in files
        )
        if self._read_small(index_name(part), folder, file) != expected:
            raise CorruptCheckpointError(file, "does not list the files as the manifest does")

    def keys(self) -> Mapping[tuple[str, str], TensorInfo]:
        """Return every tensor by part and key; of a sharded one, the whole."""
        return self._index

    def tensors(self, part: str) -> Mapping[str, TensorInfo]:
        """Return the tensors of a part by key."""
        return {key: info for (owner, key), info in self._index.items() if owner == part}

    def shards(self, part: str) -> Mapping[str, Shape]:
        """Return which tensors of a part were sharded when they were saved, with their shapes."""
        return self.manifest.shards.get(part, {})

    def read(self, sink: Sink, *, rank: int = 0, size: int = 1) -> int:
        """Read and verify every byte of every file, from a few threads.

        Where several processes read the same generation, each verifies what it wants and its share
        of the rest, so that together they verify all of it.

        Args:
            sink: Called with part, key and description of each whole tensor; returns the regions
                that are wanted of it, or None where only its digest is.
            rank: Which of the processes this is.
            size: How many there are.

        Returns:
            How many bytes the files have.

        Raises:
            CorruptCheckpointError: For the first tensor whose digest differs. What was read into
                the regions is then worthless.
        """
        jobs: list[_parallel.Job] = []
        own = threading.local()
        number = 0
        for stored in self.files:
            part = stored.record.part
            small: list[Item] = []
            for key, info in stored.tensors.items():
                total = self._index[part, key]
                wanted = sink(part, key, total)
                number += 1
                mine = number % size == rank and (part, key) not in self._fetched
                # A memoryview is a sequence, too.
                whole_or_none = wanted is None or isinstance(wanted, memoryview)
                if whole_or_none and key not in stored.record.offsets:
                    if wanted is not None or mine:
                        small.append((key, info, cast("memoryview | None", wanted)))
                    continue
                offset, shape = _box(stored, key, info, total)
                if isinstance(wanted, memoryview):
                    wanted = [whole(np.asarray(wanted), total.shape, BITS[info.dtype] // 8)]
                regions = [region for region in wanted or () if region.meets(offset, shape)]
                if regions or mine:
                    job = partial(self._read_tensor, stored, key, offset, shape, regions, own)
                    jobs.append((info.nbytes, job))
            for items in _neighbours(small):
                nbytes = items[-1][1].end - items[0][1].begin
                jobs.append((nbytes, partial(self._read_items, stored, items, own)))
        _parallel.run(jobs)
        return sum(stored.record.size for stored in self.files)

    def fetch(self, part: str, key: str, memory: memoryview) -> None:
        """Read and verify one tensor of one file before the rest.

        Raises:
            CorruptCheckpointError: If its digest differs, or it is spread over files.
        """
        found = [f for f in self.files if f.record.part == part and key in f.tensors]
        if len(found) != 1 or key in found[0].record.offsets:
            raise CorruptCheckpointError(f"{self.name}/{part}", "is spread over files", tensor=key)
        shape = visible(found[0].tensors[key].shape)
        region = whole(np.asarray(memory), shape, BITS[found[0].tensors[key].dtype] // 8)
        self._read_tensor(found[0], key, region.offset, shape, [region], threading.local())
        self._fetched.add((part, key))

    def check(self, stored: StoredFile) -> None:
        """Read and verify every byte of a file without shards.

        Raises:
            CorruptCheckpointError: For the first tensor whose digest differs.
        """
        own = threading.local()
        groups = _neighbours([(key, info, None) for key, info in stored.tensors.items()])
        _parallel.run(
            (items[-1][1].end - items[0][1].begin, partial(self._read_items, stored, items, own))
            for items in groups
        )

    def _read_tensor(
        self,
        stored: StoredFile,
        key: str,
        offset: Offset,
        shape: Shape,
        regions: Sequence[Region],
        own: threading.local,
    ) -> None:
        file, info = f"{self.name}/{stored.record.name}", stored.tensors[key]
        state = new_tensor_digest(key, info.dtype, info.shape)
        start = stored.data_start + info.begin
        # In one piece where the file and the memory lie alike, else row by row from a copy.
        out = regions[0].view_of(offset, shape) if len(regions) == 1 else None
        rows = shape[0] if regions and shape else 1
        row = info.nbytes // max(rows, 1)
        piece = CHUNK if out is not None or not regions else max(CHUNK // max(row, 1), 1) * row
        for done in range(0, info.nbytes, piece or CHUNK):
            size = min(piece, info.nbytes - done)
            chunk = _scratch(own, size) if out is None else out[done : done + size]
            _reading.read_into(stored.fd, chunk, start + done, file)
            state.update(chunk)
            if out is None and regions:
                _hand_out(chunk, shape, offset, done // row, BITS[info.dtype] // 8, regions)
        self._compare(stored, key, state.hexdigest())

    def _read_items(self, stored: StoredFile, items: Sequence[Item], own: threading.local) -> None:
        """Read whole tensors that are neighbours in a file: one of any size, or small ones."""
        file, begin = f"{self.name}/{stored.record.name}", items[0][1].begin
        start = stored.data_start + begin
        if len(items) > 1:
            block = _scratch(own, items[-1][1].end - begin)
            _reading.read_into(stored.fd, block, start, file)
            for key, info, out in items:
                piece = block[info.begin - begin : info.end - begin]
                state = new_tensor_digest(key, info.dtype, info.shape)
                state.update(piece)
                if out is not None:
                    out[:] = piece
                self._compare(stored, key, state.hexdigest())
            return
        ((key, info, out),) = items
        state = new_tensor_digest(key, info.dtype, info.shape)
        for done in range(0, info.nbytes, CHUNK):
            size = min(CHUNK, info.nbytes - done)
            chunk = _scratch(own, size) if out is None else out[done : done + size]
            _reading.read_into(stored.fd, chunk, start + done, file)
            state.update(chunk)
        self._compare(stored, key, state.hexdigest())

    def _compare(self, stored: StoredFile, key: str, actual: str) -> None:
        written = stored.record.tensors[key]
        if actual != written:
            raise CorruptCheckpointError(
                f"{self.name}/{stored.record.name}",
                f"its digest is {actual}, {written} was written",
                tensor=key,
            )


def _neighbours(items: list[Item]) -> Iterator[list[Item]]:
    """Yield small tensors that follow each other in a file together, up to `CHUNK` bytes."""
    group: list[Item] = []
    for item in sorted(items, key=lambda item: item[1].begin):
        info = item[1]
        if group and (
            info.nbytes > SMALL
            or info.begin != group[-1][1].end
            or info.end - group[0][1].begin > CHUNK
        ):
            yield group
            group = []
        group.append(item)
        if info.nbytes > SMALL:
            yield group
            group = []
    if group:
        yield group


def _box(stored: StoredFile, key: str, info: TensorInfo, total: TensorInfo) -> tuple[Offset, Shape]:
    """Return where a file's part of a tensor lies in the whole, as NumPy can see it."""
    offset = stored.record.offsets.get(key, (0,) * len(info.shape))
    return visible(total.shape, offset), visible(total.shape, info.shape)


def _hand_out(
    chunk: memoryview,
    shape: Shape,
    offset: Offset,
    row: int,
    itemsize: int,
    regions: Sequence[Region],
) -> None:
    """Copy rows of a tensor, from number `row` on, to the regions that want parts of them."""
    rows = (-1, *shape[1:]) if shape else ()
    piece = np.asarray(chunk).reshape(*rows, itemsize)
    place = (offset[0] + row, *offset[1:]) if offset else ()
    for region in regions:
        region.take(place, piece)
