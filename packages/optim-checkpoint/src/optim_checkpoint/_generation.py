# pyright: strict
"""Reading one generation: nothing is believed before its digest matched.

Every file is opened once, without following links, and read with `pread` into memory of our own, so
what is verified is what is used: a file that changes under the reader shows as damage.
"""

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from optim_checkpoint import _fs, _manifest
from optim_checkpoint._digest import digest, new_tensor_digest
from optim_checkpoint._errors import CorruptCheckpointError, shown
from optim_checkpoint._folder import GenerationName
from optim_checkpoint._header import Header, TensorInfo, read_header
from optim_checkpoint._manifest import FileRecord, Manifest
from optim_checkpoint._shard import CHUNK

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
Sink = Callable[[str, str, TensorInfo], memoryview | None]


@dataclass(frozen=True, slots=True)
class StoredFile:
    """An open file of a generation with its checked header."""

    record: FileRecord
    fd: int
    header: Header


def _open_regular(name: str, folder: int, file: str) -> tuple[int, int]:
    try:
        fd = os.open(name, _OPEN, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise CorruptCheckpointError(file, "is a symbolic link") from None
        raise CorruptCheckpointError(file, f"cannot be opened: {error.strerror}") from None
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise CorruptCheckpointError(file, "is not a regular file")
    return fd, status.st_size


def _read_into(fd: int, out: memoryview, offset: int, file: str) -> None:
    while out:
        try:
            count = os.preadv(fd, [out], offset)
        except OSError as error:
            raise CorruptCheckpointError(file, f"cannot be read: {error.strerror}") from None
        if count == 0:
            raise CorruptCheckpointError(file, f"ends at byte {offset}")
        out, offset = out[count:], offset + count


class Generation:
    """An open generation: manifest and headers checked, data not yet read.

    Attributes:
        name: Its step and index.
        manifest: The checked manifest.
        files: Its open files.
    """

    def __init__(self, root: int, name: GenerationName) -> None:
        self.name = name
        self._stack = contextlib.ExitStack()
        self.files: list[StoredFile] = []
        try:
            self._folder = self._open_folder(str(name), root, str(name))
            # Keeps retention away while we read; a file system without locks does without.
            with contextlib.suppress(OSError):
                fcntl.flock(self._folder, fcntl.LOCK_SH | fcntl.LOCK_NB)
            self.manifest = self._read_manifest()
            folders: dict[str, int] = {}
            for record in self.manifest.files:
                if record.part not in folders:
                    folders[record.part] = self._open_folder(
                        record.part, self._folder, f"{name}/{record.part}"
                    )
                self.files.append(self._open_file(record, folders[record.part]))
            self._index = self._unique_keys()
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
        try:
            fd = _fs.open_folder(name, folder)
        except OSError as error:
            raise CorruptCheckpointError(
                file, f"is not a folder that can be opened: {error.strerror}"
            ) from None
        self._stack.callback(os.close, fd)
        return fd

    def _read_manifest(self) -> Manifest:
        file = f"{self.name}/{_manifest.NAME}"
        fd, size = _open_regular(_manifest.NAME, self._folder, file)
        with _fs.opened(fd):
            if size > _manifest.MAX_MANIFEST:
                raise CorruptCheckpointError(
                    file, f"of {size} bytes, the limit is {_manifest.MAX_MANIFEST}"
                )
            raw = bytearray(size)
            _read_into(fd, memoryview(raw), 0, file)
        manifest = _manifest.parse(bytes(raw), file)
        if manifest.step != self.name.step:
            raise CorruptCheckpointError(
                file, f"is of step {manifest.step}; the folder was renamed or mixed up"
            )
        return manifest

    def _open_file(self, record: FileRecord, folder: int) -> StoredFile:
        file = f"{self.name}/{record.name}"
        fd, size = _open_regular(record.base, folder, file)
        self._stack.callback(os.close, fd)
        if size != record.size:
            raise CorruptCheckpointError(file, f"has {size} bytes, {record.size} were written")
        try:
            header = read_header(fd, size, file)
        except OSError as error:
            raise CorruptCheckpointError(file, f"cannot be read: {error.strerror}") from None
        actual = digest(header.raw)
        if actual != record.header:
            raise CorruptCheckpointError(
                file, f"the header's digest is {actual}, {record.header} was written"
            )
        if header.tensors.keys() != record.tensors.keys():
            names = shown(sorted(header.tensors.keys() ^ record.tensors.keys()))
            raise CorruptCheckpointError(file, f"header and manifest differ in {names}")
        return StoredFile(record, fd, header)

    def _unique_keys(self) -> dict[tuple[str, str], TensorInfo]:
        index: dict[tuple[str, str], TensorInfo] = {}
        for stored in self.files:
            for key, info in stored.header.tensors.items():
                if (stored.record.part, key) in index:
                    raise CorruptCheckpointError(
                        f"{self.name}/{stored.record.name}", "is in two files", tensor=key
                    )
                index[stored.record.part, key] = info
        return index

    def tensors(self, part: str) -> Mapping[str, TensorInfo]:
        """Return the tensors of a part by key."""
        return {key: info for (owner, key), info in self._index.items() if owner == part}

    def read(self, sink: Sink) -> int:
        """Read and verify every byte of every file.

        Args:
            sink: Called with part, key and description of each tensor; returns the memory to read
                it into, or None where only its digest is wanted.

        Returns:
            How many bytes were verified.

        Raises:
            CorruptCheckpointError: At the first tensor whose digest differs. What was read into the
                sinks is then worthless.
        """
        largest = max((info.nbytes for info in self._index.values()), default=0)
        scratch = memoryview(bytearray(min(CHUNK, largest)))
        total = 0
        for stored in self.files:
            for key, info in stored.header.tensors.items():
                self._read_tensor(stored, key, info, sink(stored.record.part, key, info), scratch)
            total += stored.record.size
        return total

    def _read_tensor(
        self,
        stored: StoredFile,
        key: str,
        info: TensorInfo,
        out: memoryview | None,
        scratch: memoryview,
    ) -> None:
        file = f"{self.name}/{stored.record.name}"
        if out is not None and len(out) != info.nbytes:
            raise ValueError(f"the memory for {shown(key)} has {len(out)} bytes, not {info.nbytes}")
        state = new_tensor_digest(key, info.dtype, info.shape)
        start = stored.header.data_start + info.begin
        valid = True
        for done in range(0, info.nbytes, CHUNK):
            size = min(CHUNK, info.nbytes - done)
            chunk = scratch[:size] if out is None else out[done : done + size]
            _read_into(stored.fd, chunk, start + done, file)
            state.update(chunk)
            if info.dtype == "BOOL" and bytes(chunk).translate(None, b"\0\1"):
                valid = False
        actual, written = state.hexdigest(), stored.record.tensors[key]
        if actual != written:
            raise CorruptCheckpointError(
                file, f"its digest is {actual}, {written} was written", tensor=key
            )
        if not valid:
            raise CorruptCheckpointError(file, "a boolean is neither 0 nor 1", tensor=key)
