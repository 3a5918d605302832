# pyright: strict
"""Removing what is no longer wanted: never before it is out of every reader's sight.

A generation is first renamed to the trash, and the root synced; only then its files go. So one that
is half removed is never taken for a checkpoint.
"""

import errno
import fcntl
import os
import secrets
import warnings
from collections.abc import Sequence

from optim_checkpoint import _fs
from optim_checkpoint._errors import CheckpointWarning
from optim_checkpoint._folder import TEMPORARY, TRASH, GenerationName


def discard(name: str, root: int) -> None:
    """Remove a folder as far as it goes: the next save sweeps what stays, and no reader looks."""
    try:
        _fs.remove_tree(name, root)
    except OSError:
        return


def sweep(root: int) -> None:
    """Remove what an interrupted writer left; only the holder of the lock may call this."""
    for name in sorted(os.listdir(root)):
        if name.startswith((TEMPORARY, TRASH)):
            discard(name, root)


def try_retire(
    root: int, new: GenerationName, present: Sequence[GenerationName], keep: int
) -> None:
    """Retire old generations, with a warning where that fails: the new one is committed."""
    try:
        _retire(root, new, present, keep)
    except OSError as error:
        warnings.warn(
            f"step {new.step} is saved, but older generations could not be removed: {error}",
            CheckpointWarning,
            stacklevel=4,
        )


def _retire(root: int, new: GenerationName, present: Sequence[GenerationName], keep: int) -> None:
    latest = {name.step: name for name in present}
    latest.pop(new.step, None)
    # The new generation stays even where training went back to an earlier step.
    kept = {latest[step] for step in sorted(latest, reverse=True)[: keep - 1]} | {new}
    trashed: list[str] = []
    for name in present:
        if name in kept:
            continue
        trash = f"{TRASH}{name}-{secrets.token_hex(8)}"
        if rename_unread(root, str(name), trash):
            trashed.append(trash)
    if trashed:
        _fs.ops.sync(root)
    for trash in trashed:
        discard(trash, root)


def rename_unread(root: int, name: str, trash: str) -> bool:
    """Rename a generation unless a reader holds it; it is then retired by a later save."""
    with _fs.opened(_fs.open_folder(name, root)) as folder:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # A file system that cannot lock folders, as NFS, does without, as readers do there.
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
        _fs.ops.rename(name, trash, root)
    return True
