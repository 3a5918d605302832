# pyright: strict
"""The folder of a run: which generations it holds and who may write to it."""

import contextlib
import operator
import os
import re
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import SupportsIndex

from optim_checkpoint import _fs, _locks, _reading
from optim_checkpoint._errors import (
    CheckpointNotFoundError,
    CheckpointReadError,
    CheckpointWriteError,
)

LOCK = ".lock"
MANIFEST = "manifest.json"
TEMPORARY = ".tmp-"
TRASH = ".trash-"
MAX_STEP = 10**18
GENERATION = r"step-([0-9]{8,19})(?:\.g([1-9][0-9]{0,8}))?"
_NAME = re.compile(rf"{GENERATION}\Z", re.ASCII)
_LEFTOVER = re.compile(rf"\.(?:tmp|trash)-({GENERATION})-[0-9a-f]{{16}}\Z", re.ASCII)
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


def is_leftover(name: str) -> bool:
    """Say whether a folder has a name that a writer gives its temporary or retired folders."""
    match = _LEFTOVER.match(name)
    return match is not None and parse_name(match[1]) is not None


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


def find_root(path: StrPath) -> int | None:
    """Open the folder of a run to read; None where there is no such folder.

    Raises:
        CheckpointNotFoundError: If it is one generation of a run.
        CheckpointReadError: If it cannot be opened.
    """
    try:
        root = _reading.retried(lambda: _fs.open_folder(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise CheckpointReadError(os.fspath(path), "cannot be opened", error) from error
    inside = _generation_at(root, path)
    if inside is not None:
        os.close(root)
        raise CheckpointNotFoundError(
            f"{os.fspath(path)} is one generation of a run, not the folder of the run: pass "
            f"{inside[0]} and step={inside[1].step}"
        )
    return root


def open_root(path: StrPath) -> int:
    """Open the folder of a run to read, which must be there."""
    root = find_root(path)
    if root is None:
        raise CheckpointNotFoundError(
            f"{os.fspath(path)} is not a folder of checkpoints: "
            + ("it is no folder" if os.path.lexists(path) else "there is no such folder")
        )
    return root


def _generation_at(root: int, path: StrPath) -> tuple[Path, GenerationName] | None:
    """Return in which folder an open one really is, and its name, if it is a generation."""
    place = Path(path).resolve()
    name = parse_name(place.name)
    if name is None or not has_manifest(".", root):
        return None
    return place.parent, name


def has_manifest(name: str, folder: int) -> bool:
    """Say whether a folder has what every generation of ours has, were it damaged otherwise."""
    with contextlib.suppress(OSError):
        os.stat(f"{name}/{MANIFEST}", dir_fd=folder, follow_symlinks=False)
        return True
    return False


def generations(root: int, path: StrPath) -> list[GenerationName]:
    """List the committed generations of an open root, oldest first.

    Raises:
        CheckpointReadError: If it cannot be listed.
    """
    try:
        found = _reading.retried(lambda: _entries(root))
    except OSError as error:
        raise CheckpointReadError(os.fspath(path), "cannot be listed", error) from error
    return sorted(name for name in map(parse_name, found) if name is not None)


def _entries(root: int) -> list[str]:
    """List what is no plain file: one that is called like a step was never committed."""
    with os.scandir(root) as entries:
        return [entry.name for entry in entries if not entry.is_file(follow_symlinks=False)]


def free_name(root: int, step: int, index: int) -> GenerationName:
    """Return the first name of a step, from `index` on, that nothing in the root has."""
    name = GenerationName(step, index)
    with contextlib.suppress(FileNotFoundError):
        while True:
            os.stat(str(name), dir_fd=root, follow_symlinks=False)
            name = GenerationName(step, name.index + 1)
    return name


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
    inside = _generation_at(current, path)
    if inside is not None:
        os.close(current)
        raise CheckpointWriteError(
            f"{os.fspath(path)} is one generation of a run, which would take what is saved in it "
            f"along when it is retired: save to {inside[0]}"
        )
    return current


def check_in_place(root: int, path: StrPath, step: int) -> None:
    """Check that what was committed in an open root is found under its path.

    Raises:
        CheckpointWriteError: If the folder was moved away, removed or exchanged meanwhile.
    """
    try:
        same = os.path.samestat(Path(path).stat(), os.fstat(root))
    except (FileNotFoundError, NotADirectoryError):
        same = False
    if not same:
        raise CheckpointWriteError(
            f"step {step} was committed, but not to what is {os.fspath(path)} now: the folder was "
            "renamed, removed or exchanged during the save"
        )


@contextlib.contextmanager
def locked(root: int, path: StrPath) -> Generator[None]:
    """Hold the writer's lock of a root, or say who should wait.

    A process forked meanwhile does not hold it. Where the file system has no locks, two writers
    are told apart by what is atomic there all the same: a temporary folder is renamed by its writer
    or by who sweeps it, and a generation's name is taken once.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    held = _locks.take(lambda: os.open(LOCK, flags, 0o666, dir_fd=root))
    try:
        if not _locks.exclude(held, os.fspath(path)):
            raise CheckpointWriteError(
                f"another writer holds {os.fspath(path)}/{LOCK}; one folder has one writer: wait "
                "for it or give each run its own folder"
            )
        yield
    finally:
        held.release()
