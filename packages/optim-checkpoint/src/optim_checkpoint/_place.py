# pyright: strict
"""The place of a run, a folder or a store: what every other module asks of it.

A folder is what `_commit`, `_select` and `_generation` know. A store is reached through them, too:
what is saved goes through a local folder, and what is read is copied to one (`_remote`, `_copied`).
"""

import contextlib
import os
from collections.abc import Callable, Generator, Mapping
from pathlib import Path

from optim_checkpoint import _commit, _copied, _fs, _proof, _reading, _remote
from optim_checkpoint._commit import Document
from optim_checkpoint._commits import newest
from optim_checkpoint._errors import CheckpointWriteError
from optim_checkpoint._folder import GenerationName, StrPath, find_root, generations, open_root
from optim_checkpoint._generation import Generation
from optim_checkpoint._options import DEFAULT, Options
from optim_checkpoint._policy import Notes
from optim_checkpoint._retention import reasons
from optim_checkpoint._store import open_store
from optim_checkpoint._urls import is_store, local, shown_url

# Of a store, text: pathlib drops a slash of a URL.
Place = Path | str


def inside(path: StrPath, name: GenerationName | str) -> Place:
    """Return the place of a generation, for people and for local tools."""
    if is_store(path):
        return f"{shown_url(os.fspath(path).rstrip('/'))}/{name}"
    return Path(local(path)) / str(name)


def absolute(path: StrPath) -> StrPath:
    """Return a place that a change of the working folder does not move."""
    return path if is_store(path) else Path(local(path)).absolute()


def on_disk(path: StrPath, task: str) -> StrPath:
    """Return the path of a folder, for what is not done in a store.

    Raises:
        CheckpointWriteError: If it is the URL of a store.
    """
    if is_store(path):
        raise CheckpointWriteError(
            f"{shown_url(os.fspath(path))} is a store, and {task} needs a folder that all "
            "processes see: save to one and copy the generation, or gather the state in one process"
        )
    return local(path)


def commit(
    path: StrPath,
    document: Document,
    options: Options = DEFAULT,
) -> Place:
    """Write a generation and make it durable; the arguments are those of `_commit.commit`."""
    if not is_store(path):
        return _commit.commit(local(path), document, options)
    return inside(path, _remote.commit_to_store(open_store(path), document, options))


def present(path: StrPath, *, must_exist: bool = True) -> list[GenerationName]:
    """List the committed generations, oldest first.

    Args:
        path: The place of a run.
        must_exist: Whether a folder that is not there is an error; a store has no folders.

    Raises:
        CheckpointNotFoundError: If the folder is missing, or is one generation of a run.
        CheckpointReadError: If it cannot be listed.
    """
    if is_store(path):
        return newest(open_store(path)).names
    folder = local(path)
    root = open_root(folder) if must_exist else find_root(folder)
    if root is None:
        return []
    with _fs.opened(root):
        return generations(root, folder)


@contextlib.contextmanager
def opened(path: StrPath, name: GenerationName, *, data: bool = True) -> Generator[Generation]:
    """Open a generation.

    Args:
        path: The place of a run.
        name: The generation.
        data: Whether its data is wanted, and not its manifest and headers alone.
    """
    if is_store(path):
        with _copied.opened(open_store(path), name, data=data) as generation:
            yield generation
        return
    with _fs.opened(open_root(local(path))) as root, Generation(root, name) as generation:
        yield generation


def note_damage(path: StrPath, name: GenerationName, file: str) -> None:
    """Note that a file was found damaged; the arguments are those of `_proof.note_damage`."""
    if is_store(path):
        _remote.note_damage(open_store(path), name, file)
    else:
        _proof.note_damage(local(path), name, file)


# Of each file of a generation what it is, whichever name it has, and how many bytes.
Files = Mapping[str, tuple[object, int]]


def files(path: StrPath) -> dict[GenerationName, Files]:
    """Return the files of every generation; those that several share are equal."""
    if is_store(path):
        found = newest(open_store(path)).generations
        return {
            name: {file: (stored.key(file), size) for file, size in stored.files.items()}
            for name, stored in found.items()
        }
    listed: dict[GenerationName, Files] = {}
    with _fs.opened(open_root(local(path))) as root:
        for name in generations(root, path):
            # It may be on its way out, or no folder of ours.
            with contextlib.suppress(OSError):
                marks = _proof.marks(str(name), root)
                listed[name] = {mark[0]: (mark[1], mark[2]) for mark in marks}
    return listed


Stays = tuple[GenerationName, list[str], Notes]


def kept(path: StrPath) -> list[Stays]:
    """Say why each generation stays, by what the last save was told to keep, with its notes."""
    if is_store(path):
        store = open_store(path)
        head = newest(store)
        notes = {name: Notes.of(stored.notes) for name, stored in head.generations.items()}

        def why(last: GenerationName) -> dict[GenerationName, list[str]]:
            return _remote.reasons(store, head, last, notes[last].policy)

        return _kept(head.names, notes, why)
    folder = local(path)

    def listed() -> list[Stays]:
        root = find_root(folder)
        if root is None:
            return []
        with _fs.opened(root):
            names = generations(root, folder)
            notes = {name: _proof.examine(root, name)[1] for name in names}
            return _kept(names, notes, lambda last: reasons(root, names, last, notes[last].policy))

    return _reading.afresh(listed)


def _kept(
    names: list[GenerationName],
    notes: Mapping[GenerationName, Notes],
    why: Callable[[GenerationName], dict[GenerationName, list[str]]],
) -> list[Stays]:
    left = {name for each in notes.values() for name in each.abandoned}
    last = max((name for name in names if name not in left), default=None)
    if last is None:
        return []
    stays = why(last)
    if notes[last].policy.keep is None:
        for name in names:
            stays.setdefault(name, []).append("the last save was told to keep all")
    return [(name, stays.get(name, []), notes[name]) for name in names]
