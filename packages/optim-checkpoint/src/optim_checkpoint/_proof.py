# pyright: strict
"""What is known of the generations of a run, so that retention need not read them again and again.

What was found out about a generation holds as long as no file of it has changed: that costs a
`stat` per file, where parsing a manifest of 100,000 tensors takes a second.
"""

import contextlib
import os
from collections.abc import Generator, Mapping
from enum import IntEnum
from pathlib import Path

from optim_checkpoint import _fs, _reading
from optim_checkpoint._errors import CheckpointError, CorruptCheckpointError
from optim_checkpoint._folder import GenerationName, StrPath, find_root, generations
from optim_checkpoint._generation import Generation
from optim_checkpoint._policy import Notes

Mark = tuple[int, int, int, int]
Marks = tuple[tuple[str, int, int, int, int], ...]


class State(IntEnum):
    """What is known of a generation."""

    DAMAGED = 0
    UNKNOWN = 1
    SOUND = 2
    # By this process, which so knows the bytes of every file and not the headers alone.
    WRITTEN = 3


Found = tuple[State, Notes]
_found: dict[tuple[int, int, GenerationName], tuple[Marks, Found]] = {}


def _key(root: int, name: GenerationName) -> tuple[int, int, GenerationName]:
    status = os.fstat(root)
    return status.st_dev, status.st_ino, name


def marks(name: str, folder: int) -> Marks:
    """Return what tells a changed file from an unchanged one, for each file of a folder."""
    return tuple((path, *mark(status)) for path, status in _files(name, folder))


def has_links(name: str, folder: int) -> bool:
    """Tell whether a file of a folder may have another name, whose times change when it goes."""
    try:
        return any(status.st_nlink > 1 for _, status in _files(name, folder))
    except OSError:
        return True


def _files(name: str, folder: int, path: str = "") -> list[tuple[str, os.stat_result]]:
    found: list[tuple[str, os.stat_result]] = []
    with _fs.opened(_fs.open_folder(name, folder)) as inner:
        for entry in sorted(os.listdir(inner)):  # noqa: PTH208 - pathlib knows no folder descriptors
            status = os.stat(entry, dir_fd=inner, follow_symlinks=False)
            if (status.st_mode & 0o170000) == 0o040000:
                found += _files(entry, inner, f"{path}{entry}/")
            else:
                found.append((f"{path}{entry}", status))
    return found


def mark(status: os.stat_result) -> Mark:
    """Return what tells a changed file from an unchanged one, whichever name it has."""
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def remember(root: int, name: GenerationName, state: State, notes: Notes | None = None) -> None:
    """Note what was found out about a generation."""
    try:
        _found[_key(root, name)] = marks(str(name), root), (state, notes or Notes())
    except OSError:
        forget(root, name)


def written(root: int, name: GenerationName, notes: Notes) -> None:
    """Note a generation of this process; as sound, if a file changed since it was linked."""
    remember(root, name, State.WRITTEN, notes)
    own = _key(root, name)
    now = {each[1]: each[1:] for each in _found[own][0]} if own in _found else {}
    seen: dict[int, set[Mark]] = {}
    for key, (then, _) in _found.items():
        if key[:2] == own[:2] and key != own:
            for each in then:
                if each[1] in now:
                    seen.setdefault(each[1], set()).add(each[1:])
    if any(now[inode] not in known for inode, known in seen.items()):
        remember(root, name, State.SOUND, notes)


def relinked(root: int, changes: Mapping[Mark, Mark]) -> None:
    """Note what files were and are that got another name, which changes a time of them."""
    place = _key(root, GenerationName(0))[:2]
    for key, (then, found) in [*_found.items()] if changes else ():
        if key[:2] == place:
            _found[key] = tuple((each[0], *changes.get(each[1:], each[1:])) for each in then), found


def forget(root: int, name: GenerationName) -> None:
    """Drop what is known of a generation."""
    _found.pop(_key(root, name), None)


def forget_run(path: StrPath) -> None:
    """Drop what is known of a run that is about to be removed."""
    status = Path(path).stat()
    for key in [key for key in _found if key[:2] == (status.st_dev, status.st_ino)]:
        del _found[key]


def note_damage(path: StrPath, name: GenerationName, file: str) -> None:
    """Note that a file was found damaged, so that no save counts its generations as sound.

    Args:
        path: The folder of the run.
        name: The generation that was read.
        file: Where the damage is, as an error names it.
    """
    try:
        root = find_root(path)
    except CheckpointError:
        return
    if root is not None:
        with _fs.opened(root):
            damaged(root, name, file)


def damaged(root: int, name: GenerationName, file: str) -> None:
    """Do what `note_damage` does in an open root."""
    remember(root, name, State.DAMAGED)
    inodes = {each[1] for each in _marks_of(root, name) if f"{name}/{each[0]}" == file}
    # That they cannot be listed must not hide the damage.
    with contextlib.suppress(CheckpointError):
        for other in generations(root, "."):
            if any(each[1] in inodes for each in _marks_of(root, other)):
                remember(root, other, State.DAMAGED)


def _marks_of(root: int, name: GenerationName) -> Marks:
    try:
        return marks(str(name), root)
    except OSError:
        return ()


def state_of(root: int, name: GenerationName) -> State:
    """Say what is known of a generation without looking at more than its marks."""
    try:
        now = marks(str(name), root)
    except OSError:
        return State.UNKNOWN
    known, (state, _) = _found.get(_key(root, name), (None, (State.UNKNOWN, Notes())))
    return state if known == now else State.UNKNOWN


@contextlib.contextmanager
def relinking(root: int) -> Generator[None]:
    """Keep what is known of a run while files lose names, which changes a time of them."""
    place = _key(root, GenerationName(0))[:2]
    names = [key[2] for key in _found if key[:2] == place]
    known = [name for name in names if state_of(root, name) is not State.UNKNOWN]
    try:
        yield
    finally:
        for name in known:
            if (found := _found.get(_key(root, name))) is not None:
                remember(root, name, *found[1])


def examine(root: int, name: GenerationName) -> Found:
    """Say what is known of a generation after looking at it, where it was not known before.

    Manifest, sizes and headers are read.

    Args:
        root: The open folder of the run.
        name: The generation.
    """
    try:
        now = marks(str(name), root)
    except OSError:
        now = None
    known, found = _found.get(_key(root, name), (None, (State.UNKNOWN, Notes())))
    if now is not None and known == now:
        return found

    def look() -> Notes:
        with Generation(root, name) as generation:
            return Notes.of(generation.manifest.sections)

    try:
        found = State.SOUND, _reading.afresh(look)
    except CorruptCheckpointError:
        found = State.DAMAGED, Notes()
    except (CheckpointError, MemoryError):
        return State.UNKNOWN, Notes()
    if now is not None:
        _found[_key(root, name)] = now, found
    return found
