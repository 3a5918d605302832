# pyright: strict
"""Removing what is no longer wanted: never before it is out of every reader's sight.

A generation is first renamed to the trash, and the root synced; only then its files go. So one that
is half removed is never taken for a checkpoint.

What is wanted `decide` says. A damaged generation, or one that cannot be read, takes no place and
goes when it is older than what was saved. How sound is proved: what this process wrote or read in
full is known; of another, manifest, sizes and headers are read, once in a process.
"""

import contextlib
import errno
import fcntl
import functools
import os
import secrets
import warnings
from collections.abc import Mapping, Sequence

from optim_checkpoint import _fs, _locks
from optim_checkpoint._errors import CheckpointWarning
from optim_checkpoint._folder import TRASH, GenerationName, has_manifest, is_leftover
from optim_checkpoint._pins import pins
from optim_checkpoint._policy import Notes, Policy, decide
from optim_checkpoint._proof import State, examine, forget, has_links, relinking, written

_warned: set[tuple[str, int, int, int]] = set()


def discard(name: str, root: int) -> OSError | None:
    """Remove a folder as far as it goes: the next save sweeps what stays, and no reader looks.

    Returns:
        The first error.
    """
    try:
        _fs.remove_tree(name, root)
    except OSError as error:
        return error
    return None


def sweep(root: int) -> None:
    """Remove what interrupted writers left; only the holder of the lock may call this.

    Where there are no locks, a folder may be that of a writer at work. Renamed, it can no longer be
    committed, and one that was committed first cannot be renamed: none is half removed.
    """
    left = [*filter(is_leftover, sorted(os.listdir(root)))]
    # Its files may be linked to those of generations.
    with relinking(root) if left else contextlib.nullcontext():
        for name in left:
            trash = name
            if not name.startswith(TRASH):
                trash = f"{TRASH}{name.removeprefix('.tmp-')}"
                try:
                    _fs.ops.rename(name, trash, root)
                except OSError:
                    continue
            discard(trash, root)


def try_retire(
    root: int,
    new: GenerationName,
    present: Sequence[GenerationName],
    policy: Policy,
    sections: Mapping[str, object],
) -> None:
    """Retire old generations, with a warning for each that cannot be: the new one is committed.

    Args:
        root: The open folder of the run.
        new: What was committed.
        present: What was there before.
        policy: What to keep.
        sections: What the manifest of the new one holds.
    """
    written(root, new, Notes.of(sections))
    if policy.keep is None:
        return
    try:
        stays = reasons(root, present, new, policy)
        gone = [name for name in sorted(present, reverse=True) if name not in stays]
        # What is kept is looked at anew only where it may share a file with what goes.
        linked = any(has_links(str(name), root) for name in gone)
        with relinking(root) if linked else contextlib.nullcontext():
            failed = _retire(root, gone)
    except OSError as error:
        # Which are pinned cannot be read: none goes, and what is committed stays committed.
        failed = dict.fromkeys(present, error)
    news = {name: error for name, error in failed.items() if _is_news(root, name)}
    if news:
        listed = ", ".join(
            f"{name} ({errno.errorcode.get(error.errno or 0, 'error')}: {error.strerror})"
            for name, error in news.items()
        )
        warnings.warn(
            f"step {new.step} is saved, but older generations could not be removed: {listed}; "
            "every save tries again without a further word",
            CheckpointWarning,
            stacklevel=4,
        )


def reasons(
    root: int, present: Sequence[GenerationName], new: GenerationName, policy: Policy
) -> dict[GenerationName, list[str]]:
    """Return why each generation stays that does, of an open root."""
    known = functools.cache(functools.partial(examine, root))
    return decide(
        policy,
        present,
        new,
        sound=lambda name: known(name)[0] >= State.SOUND,
        notes=lambda name: known(name)[1],
        pins=pins(root),
    )


def _is_news(root: int, name: GenerationName) -> bool:
    key = (str(name), 0, 0, 0)
    try:
        status = os.stat(str(name), dir_fd=root, follow_symlinks=False)
        key = (str(name), status.st_dev, status.st_ino, status.st_mtime_ns)
    except OSError:
        return True
    known = key in _warned
    _warned.add(key)
    return not known


def _retire(root: int, names: Sequence[GenerationName]) -> dict[GenerationName, OSError]:
    """Remove generations and go on past what cannot be removed, which is returned."""
    failed: dict[GenerationName, OSError] = {}
    trashed: dict[GenerationName, str] = {}
    for name in names:
        trash = f"{TRASH}{name}-{secrets.token_hex(8)}"
        try:
            if not has_manifest(str(name), root):
                raise OSError(errno.EPERM, "without a manifest it may be somebody else's folder")
            if rename_unread(root, str(name), trash):
                trashed[name] = trash
                forget(root, name)
        except OSError as error:
            failed[name] = error
    try:
        if trashed:
            _fs.ops.sync(root)
    except OSError as error:
        return failed | dict.fromkeys(trashed, error)
    for name, trash in trashed.items():
        error = discard(trash, root)
        if error is not None:
            failed[name] = error
    return failed


def rename_unread(root: int, name: str, trash: str) -> bool:
    """Rename a generation unless a reader holds it; it is then retired by a later save."""
    with _fs.opened(_fs.open_folder(name, root)) as folder:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # A file system that cannot lock folders, as NFS, does without, as readers do there.
            if error.errno in _locks.BUSY:
                return False
        _fs.ops.rename(name, trash, root)
    return True
