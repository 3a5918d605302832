# pyright: strict
"""Reading a generation of a store: its files are copied to a local folder and read there.

So what is read goes through every check that a folder's generation does.
"""

import contextlib
import errno
import os
from collections.abc import Generator, Mapping
from pathlib import Path

from optim_checkpoint import _fs
from optim_checkpoint._commits import Stored, newest
from optim_checkpoint._errors import CheckpointReadError, CorruptCheckpointError
from optim_checkpoint._folder import GenerationName
from optim_checkpoint._generation import Generation
from optim_checkpoint._header import MAX_HEADER
from optim_checkpoint._stage import staging
from optim_checkpoint._store import Store


@contextlib.contextmanager
def opened(store: Store, name: GenerationName, *, data: bool = True) -> Generator[Generation]:
    """Open a generation of a store, of which a local folder gets a copy.

    Args:
        store: The store.
        name: The generation.
        data: Whether its data is wanted; else the manifest and the headers are copied alone.

    Raises:
        CorruptCheckpointError: If it is damaged, or retention removed it meanwhile.
        CheckpointReadError: If something cannot be read, or has no room locally.
    """
    stored = newest(store).generations.get(name)
    if stored is None:
        raise CorruptCheckpointError(str(name), "was removed by retention while it was read")
    with contextlib.ExitStack() as stack:
        try:
            local = stack.enter_context(staging())
            fetch(store, name, stored, local, data=data)
            root = stack.enter_context(_fs.opened(_fs.open_folder(local)))
        except CheckpointReadError:
            raise
        except OSError as error:
            raise CheckpointReadError(
                f"{store}/{name}", "cannot be copied to a local folder", error
            ) from error
        yield stack.enter_context(Generation(root, name))


def fetch(store: Store, name: GenerationName, stored: Stored, local: Path, *, data: bool) -> None:
    """Copy a generation to a local folder.

    Raises:
        CorruptCheckpointError: If something of it is not there.
        OSError: If something cannot be read, or has no room.
    """
    needed, status = sum(stored.files.values()), os.statvfs(local)
    free = status.f_bavail * status.f_frsize
    if data and free < needed:
        raise OSError(
            errno.ENOSPC,
            f"{needed} bytes are needed, {free} are free in {local.parent}, which TMPDIR chooses",
        )
    with _made(name, stored, local) as folder:
        for file, size in stored.files.items():
            key = stored.key(file)
            if data or not file.endswith(".safetensors"):
                there = _fetch_file(store, key, local / str(name) / file, size)
            else:
                there = _fetch_header(store, key, file, folder)
            if not there:
                gone = newest(store).generations.get(name) != stored
                raise CorruptCheckpointError(
                    f"{name}/{file}",
                    "was removed by retention while it was read" if gone else "is missing",
                )


@contextlib.contextmanager
def _made(name: GenerationName, stored: Stored, local: Path) -> Generator[int]:
    """Make the folders of a generation in a local folder, and open the outer one."""
    with _fs.opened(_fs.open_folder(local)) as root:
        _fs.ops.make_folder(str(name), root)
    with _fs.opened(_fs.open_folder(local / str(name))) as folder:
        for part in sorted({file.partition("/")[0] for file in stored.files if "/" in file}):
            _fs.ops.make_folder(part, folder)
        yield folder


def _fetch_file(store: Store, key: str, target: Path, size: int) -> bool:
    there = store.download(key, target)
    # One that was cut off on the way says nothing about what is there.
    for _ in range(3):
        if not there or target.stat().st_size == size or store.size(key) != size:
            return there
        there = store.download(key, target)
    return there


def _fetch_header(store: Store, key: str, file: str, folder: int) -> bool:
    size, length = store.size(key), store.read(key, 8)
    if size is None or length is None:
        return False
    raw = store.read(key, 8 + min(int.from_bytes(length, "little"), MAX_HEADER, size)) or length
    _make_outlined(file, raw, size, folder)
    return True


def outline(name: GenerationName, stored: Stored, heads: Mapping[str, bytes], local: Path) -> None:
    """Make a generation in a local folder of which only the first bytes of each file are known."""
    with _made(name, stored, local) as folder:
        for file, raw in heads.items():
            _make_outlined(file, raw, stored.files[file], folder)


def _make_outlined(file: str, raw: bytes, size: int, folder: int) -> None:
    """Make a file that has its size and its first bytes, and else no data."""
    part, _, base = file.rpartition("/")
    with _fs.opened(_fs.open_folder(part or ".", folder)) as inner:
        fd = _fs.ops.create(base, inner)
        with _fs.opened(fd):
            _fs.write_all(fd, memoryview(raw))
            _fs.ops.extend(fd, size)
