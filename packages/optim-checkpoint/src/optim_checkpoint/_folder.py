# pyright: strict
"""The folder of a run: which generations it holds and who may write to it."""

import contextlib
import errno
import fcntl
import operator
import os
import re
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import SupportsIndex

from optim_checkpoint import _fs
from optim_checkpoint._errors import CheckpointNotFoundError, CheckpointWriteError

LOCK = ".lock"
TEMPORARY = ".tmp-"
TRASH = ".trash-"
MAX_STEP = 10**18
_NAME = re.compile(r"step-([0-9]{8,19})(?:\.g([1-9][0-9]{0,8}))?\Z", re.ASCII)
StrPath = str | os.PathLike[str]


@dataclass(frozen=True, slots=True, order=True)
class GenerationName:
    """A committed folder: its step and, where the step was written again, how often."""

    step: int
    index: int = 0

    def __str__(self) -> str:
        suffix = f".g{self.index}" if self.index else ""
        return f"step-{self.step:08d}{suffix}"


def parse_name(name: str) -> GenerationName | None:
    """Return what a folder name stands for, or None where it is not a generation."""
    match = _NAME.match(name)
    if match is None:
        return None
    parsed = GenerationName(int(match[1]), int(match[2] or 0))
    return parsed if str(parsed) == name else None


def check_step(step: object) -> int:
    """Return `step` if it is an integer from 0 to 10**18."""
    # NumPy and zero-dimensional arrays count as integers where they say they are.
    number = -1
    if isinstance(step, SupportsIndex) and not isinstance(step, bool):
        with contextlib.suppress(TypeError):
            number = operator.index(step)
    if not 0 <= number <= MAX_STEP:
        raise ValueError(f"step is {step!r}; it must be an integer from 0 to 10**18")
    return number


def open_root(path: StrPath) -> int:
    """Open the folder of a run to read."""
    try:
        return _fs.open_folder(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointNotFoundError(
            f"{os.fspath(path)} is not a folder of checkpoints: {error.strerror}"
        ) from None


def generations(root: int) -> list[GenerationName]:
    """List the committed generations of an open root, oldest first."""
    return sorted(name for name in map(parse_name, os.listdir(root)) if name is not None)


def make_root(path: StrPath) -> int:
    """Open the folder of a run to write; create it, durably, with its parents."""
    target = Path(path).absolute()
    missing: list[Path] = []
    while not target.is_dir():
        missing.append(target)
        target = target.parent
    current = _fs.open_folder(target)
    for folder in reversed(missing):
        with _fs.opened(current):
            with contextlib.suppress(FileExistsError):
                _fs.ops.make_folder(folder.name, current)
            # Also where another process was quicker, which may not have come to this yet.
            _fs.ops.sync(current)
            following = os.open(folder.name, _fs.DIRECTORY, dir_fd=current)
        current = following
    return current


@contextlib.contextmanager
def locked(root: int, path: StrPath) -> Generator[None]:
    """Hold the writer's lock of a root, or say who should wait."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    with _fs.opened(os.open(LOCK, flags, 0o666, dir_fd=root)) as fd:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise CheckpointWriteError(
                f"another writer holds {os.fspath(path)}/{LOCK}; one folder has one writer: wait "
                "for it or give each run its own folder"
            ) from None
        try:
            yield
        finally:
            unlock(fd)


def unlock(fd: int) -> None:
    """Give a lock back; closing alone does not while a process forked meanwhile has a copy."""
    with contextlib.suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_UN)
