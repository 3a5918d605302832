# pyright: strict
"""The commit protocol: a generation is either complete and durable, or it is not there.

1. write every file of a new temporary folder and sync each one;
2. write the manifest, which holds the digests of all the others, and sync it;
3. sync the folders of the parts, then the temporary folder: the names in them are data too;
4. rename the folder to its final name, which is the commit, and sync the root;
5. only now retire old generations: rename to the trash, sync, then remove.

A crash before 4 leaves a temporary folder that no reader looks at; a crash after it leaves the new
generation. Nothing that was committed is touched before step 5.
"""

import errno
import fcntl
import os
import secrets
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from optim_checkpoint import _fs, _manifest
from optim_checkpoint._errors import (
    CheckpointExistsError,
    CheckpointWarning,
    CheckpointWriteError,
)
from optim_checkpoint._folder import (
    TEMPORARY,
    TRASH,
    GenerationName,
    StrPath,
    check_step,
    generations,
    locked,
    make_root,
)
from optim_checkpoint._json import dumps
from optim_checkpoint._shard import Entry, Layout, lay_out, write_shard

_SLACK = 64 << 10


@dataclass(frozen=True, slots=True)
class Document:
    """A state ready to be written.

    Attributes:
        step: The training step.
        framework: Name and versions, for the manifest.
        sections: What the face stores beside tensors.
        parts: The tensors of "model", "optim" and "train"; an empty part writes no file.
    """

    step: int
    framework: Mapping[str, object]
    sections: Mapping[str, object]
    parts: Mapping[str, Sequence[Entry]]


def check_keep(keep: object) -> int | None:
    """Return `keep` if it is None or an integer of at least 1."""
    if keep is None:
        return None
    if type(keep) is not int or keep < 1:
        raise ValueError(f"keep is {keep!r}; it must be None or an integer of at least 1")
    return keep


def commit(
    path: StrPath, document: Document, *, keep: int | None = None, replace: bool = False
) -> Path:
    """Write a generation and make it durable.

    Args:
        path: The folder of the run; created where missing.
        document: What to write.
        keep: How many generations to keep, the new one included; None keeps all.
        replace: Whether a step that exists gets a newer generation instead of an error.

    Returns:
        The path of the committed generation. When this returns, it survives a power cut.

    Raises:
        CheckpointExistsError: If the step exists and `replace` is false.
        CheckpointWriteError: If the disk is full, the folder cannot be written or another writer
            holds it. What was committed before is untouched.
    """
    step, keep = check_step(document.step), check_keep(keep)
    layouts = {
        part: lay_out(
            entries,
            {"format": "pt", "optim_checkpoint": dumps({"part": part, "v": 1}).decode()},
        )
        for part, entries in document.parts.items()
        if entries
    }
    needed = sum(layout.size for layout in layouts.values()) + _SLACK
    try:
        with _fs.opened(make_root(path)) as root, locked(root, path):
            _sweep(root)
            present = generations(root)
            target = _target(step, present, path, replace=replace)
            _check_space(root, path, needed)
            _write(root, target, layouts, document)
            if keep is not None:
                _try_retire(root, target, present, keep)
    except OSError as error:
        raise _write_error(path, step, needed, error) from error
    return Path(path) / str(target)


def _target(
    step: int, present: Sequence[GenerationName], path: StrPath, *, replace: bool
) -> GenerationName:
    same = [name for name in present if name.step == step]
    if not same:
        return GenerationName(step)
    if not replace:
        raise CheckpointExistsError(
            f"{os.fspath(path)} already holds step {step} ({same[-1]}); pass replace=True to write "
            "a newer generation of it"
        )
    # A fresh name, never the old one: there is no moment with neither generation in place.
    return GenerationName(step, same[-1].index + 1)


def _free(root: int) -> int:
    status = os.fstatvfs(root)
    return status.f_bavail * status.f_frsize


def _check_space(root: int, path: StrPath, needed: int) -> None:
    free = _free(root)
    if free < needed:
        raise CheckpointWriteError(
            f"{os.fspath(path)}: the save needs {needed} bytes, the file system has {free} free; "
            "nothing was written",
            needed=needed,
            free=free,
        )


def _write_error(path: StrPath, step: int, needed: int, error: OSError) -> CheckpointWriteError:
    try:
        with _fs.opened(_fs.open_folder(path)) as root:
            free = _free(root)
    except OSError:
        free = None
    name = errno.errorcode.get(error.errno or 0, "error")
    return CheckpointWriteError(
        f"step {step} was not saved to {os.fspath(path)}: {name} ({error.strerror}); it needs "
        f"{needed} bytes, {'unknown' if free is None else free} free; earlier steps are untouched",
        needed=needed,
        free=free,
    )


def _write(
    root: int, target: GenerationName, layouts: Mapping[str, Layout], document: Document
) -> None:
    temporary = f"{TEMPORARY}{target}-{secrets.token_hex(8)}"
    _fs.ops.make_folder(temporary, root)
    try:
        with _fs.opened(_fs.open_folder(temporary, root)) as folder:
            files = [_write_part(folder, part, layout) for part, layout in layouts.items()]
            manifest = _manifest.build(document.step, document.framework, files, document.sections)
            _write_manifest(folder, manifest)
            _fs.ops.sync(folder)
        _fs.ops.rename(temporary, str(target), root)
    except BaseException:
        _discard(temporary, root)
        raise
    try:
        _fs.ops.sync(root)
    except OSError:
        # Visible but perhaps not durable: take it back, so that a save that failed left nothing.
        _rename_unread(root, str(target), temporary)
        _discard(temporary, root)
        raise


def _write_part(folder: int, part: str, layout: Layout) -> dict[str, object]:
    base = f"{part}.safetensors"
    _fs.ops.make_folder(part, folder)
    with _fs.opened(_fs.open_folder(part, folder)) as inner:
        record = write_shard(layout, base, inner)
        _fs.ops.sync(inner)
    return {"name": f"{part}/{base}", **record}


def _write_manifest(folder: int, raw: bytes) -> None:
    fd = _fs.ops.create(_manifest.NAME, folder)
    closed = False
    try:
        _fs.allocate(fd, len(raw))
        _fs.write_all(fd, memoryview(raw))
        _fs.ops.sync(fd)
        closed = True
        _fs.ops.close(fd)
    finally:
        if not closed:
            os.close(fd)


def _discard(name: str, root: int) -> None:
    # Best effort: the next save sweeps what stays, and no reader looks at it.
    try:
        _fs.remove_tree(name, root)
    except OSError:
        return


def _sweep(root: int) -> None:
    """Remove what an interrupted writer left; only the holder of the lock may call this."""
    for name in sorted(os.listdir(root)):
        if name.startswith((TEMPORARY, TRASH)):
            _discard(name, root)


def _try_retire(
    root: int, new: GenerationName, present: Sequence[GenerationName], keep: int
) -> None:
    # The new generation is committed: that an old one could not be removed must not hide it.
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
        if _rename_unread(root, str(name), trash):
            trashed.append(trash)
    if trashed:
        _fs.ops.sync(root)
    for trash in trashed:
        _discard(trash, root)


def _rename_unread(root: int, name: str, trash: str) -> bool:
    """Rename a generation unless a reader holds it; it is then retired by a later save."""
    try:
        with _fs.opened(_fs.open_folder(name, root)) as folder:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _fs.ops.rename(name, trash, root)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True
