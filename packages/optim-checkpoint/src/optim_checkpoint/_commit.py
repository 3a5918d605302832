# pyright: strict
"""The commit protocol: a generation is either complete and durable, or it is not there.

1. write every file of a new temporary folder and sync each one; an incremental save links those
   of which nothing has changed (`_incremental`), and these are durable already;
2. write the manifest, which holds the digests of all the others, and sync it;
3. sync the folders of the parts, then the temporary folder: the names in them are data too; then
   open it as a restore will, so that nothing is committed that a reader refuses;
4. rename the folder to its final name, which is the commit, and sync the root;
5. only now retire old generations: rename to the trash, sync, then remove.

A crash before 4 leaves a temporary folder that no reader looks at; a crash after it leaves the new
generation. Nothing that was committed is touched before step 5.
"""

import contextlib
import errno
import os
import secrets
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as replace_fields
from pathlib import Path

from optim_checkpoint import _fs, _incremental, _manifest, _reading
from optim_checkpoint._boxes import Shape
from optim_checkpoint._errors import (
    CheckpointError,
    CheckpointExistsError,
    CheckpointReadError,
    CheckpointWarning,
    CheckpointWriteError,
    CorruptCheckpointError,
    UnsupportedStateError,
    shown,
)
from optim_checkpoint._files import (
    PlannedFile,
    ShardEntry,
    check_max_shard_size,
    index_name,
    index_of,
    plan_files,
)
from optim_checkpoint._folder import (
    TEMPORARY,
    GenerationName,
    StrPath,
    check_in_place,
    check_step,
    free_name,
    generations,
    locked,
    make_root,
)
from optim_checkpoint._generation import Generation
from optim_checkpoint._incremental import LinkedFile, link
from optim_checkpoint._json import as_object
from optim_checkpoint._options import DEFAULT, Options
from optim_checkpoint._policy import METRICS, RETENTION, Policy
from optim_checkpoint._proof import Mark, relinked, relinking
from optim_checkpoint._retention import discard, rename_unread, sweep, try_retire
from optim_checkpoint._shard import Entry, write_shard

SLACK = 64 << 10
Record = dict[str, object]


@dataclass(frozen=True, slots=True)
class Document:
    """A state ready to be written.

    Attributes:
        step: The training step.
        framework: Name and versions, for the manifest.
        sections: What the face stores beside tensors.
        parts: The tensors of "model", "optim" and "train"; an empty part writes no file.
        own: What only this one of several processes has; goes to the section "train".
        own_keys: The tensors of the part "train" that belong to it.
        shards: For each part the tensors that are spread over processes, with the whole shapes.
        features: What a reader has to know beyond the first version of the format.
    """

    step: int
    framework: Mapping[str, object]
    sections: Mapping[str, object]
    parts: Mapping[str, Sequence[Entry]]
    own: Mapping[str, object] | None = None
    shards: Mapping[str, Mapping[str, Shape]] = field(
        default_factory=dict[str, Mapping[str, Shape]]
    )
    features: Collection[str] = ()
    own_keys: Collection[str] = ()


def check_not_spread(document: Document) -> None:
    """Refuse a document of which this process may have only a part.

    Raises:
        UnsupportedStateError: With the first tensor that is spread over processes.
    """
    spread = [key for shapes in document.shards.values() for key in shapes]
    for entries in document.parts.values():
        spread += [entry.name for entry in entries if isinstance(entry, ShardEntry)]
    if spread:
        raise UnsupportedStateError(
            shown(spread[0])[1:-1],
            "is spread over processes; they save it together with save(), nobody alone",
        )


def with_policy(document: Document, policy: Policy, present: Sequence[GenerationName]) -> Document:
    """Return a document that says what its save was told to keep, and what it is older than."""
    if policy.keep is None:
        return document
    metrics = as_object(document.sections.get(METRICS))
    if policy.keep_best is not None and metrics and policy.keep_best[0] not in metrics:
        warnings.warn(
            f"keep_best goes by {shown(policy.keep_best[0])}, and metrics has "
            f"{', '.join(map(shown, metrics))}: what is saved without it is not among the best",
            CheckpointWarning,
            stacklevel=4,
        )
    newer = [name for name in present if name.step > document.step]
    sections = {**document.sections, RETENTION: policy.record(newer)}
    return replace_fields(document, sections=sections)


def commit(
    path: StrPath,
    document: Document,
    options: Options = DEFAULT,
) -> Path:
    """Write a generation and make it durable.

    Args:
        path: The folder of the run; created where missing.
        document: What to write.
        options: How to go about it.

    Returns:
        The path of the committed generation. When this returns, it survives a power cut.

    Raises:
        CheckpointExistsError: If the step exists undamaged and `replace` is false.
        CheckpointWriteError: If the disk is full, the folder cannot be written or another writer
            holds it. What was committed before is untouched.
    """
    step, policy = check_step(document.step), options.policy
    check_not_spread(document)
    limit = check_max_shard_size(options.max_shard_size)
    files = plan_files(document.parts, limit)
    needed = bytes_needed(files)
    try:
        with _fs.opened(make_root(path)) as root, locked(root, path):
            target, present = prepare(root, path, step, replace=options.replace)
            with contextlib.ExitStack() as stack:
                if options.incremental:
                    before = [name for name in present if name < target]
                    plan = _incremental.planned(root, before, document.parts, limit)
                    files = stack.enter_context(plan)
                    needed = bytes_needed(files)
                check_space(root, path, needed)
                document = with_policy(document, policy, present)
                _write(root, target, files, document)
            check_in_place(root, path, step)
            try_retire(root, target, present, policy, document.sections)
    except OSError as error:
        raise write_error(path, step, needed, error) from error
    return Path(path) / str(target)


def bytes_needed(files: Sequence[PlannedFile]) -> int:
    """Return how much room a save needs, with some for the manifest and the folders."""
    written = (file for file in files if not isinstance(file, LinkedFile))
    return sum(file.layout.size for file in written) + SLACK


def prepare(
    root: int, path: StrPath, step: int, *, replace: bool
) -> tuple[GenerationName, list[GenerationName]]:
    """Clear what an interrupted writer left and say what the new generation is called.

    Only the holder of the lock may call this.

    Returns:
        The new name and the generations that are there.
    """
    sweep(root)
    present = generations(root, path)
    target = _target(root, path, step, present, replace=replace)
    return target, present


def _target(
    root: int, path: StrPath, step: int, present: Sequence[GenerationName], *, replace: bool
) -> GenerationName:
    same = [name for name in present if name.step == step]
    if not same:
        return free_name(root, step, 0)
    if not replace and _is_sound(root, path, same[-1]):
        raise CheckpointExistsError(
            f"{os.fspath(path)} already holds step {step} ({same[-1]}); pass replace=True to write "
            "a newer generation of it"
        )
    # A fresh name, never the old one: there is no moment with neither generation in place.
    return free_name(root, step, same[-1].index + 1)


def _is_sound(root: int, path: StrPath, name: GenerationName) -> bool:
    """Say whether every bit of a generation verifies.

    A restore passes a damaged one over, and training that goes on from the step before comes here
    again: that must not end it. One that cannot be read is no such case.
    """

    def read() -> None:
        with Generation(root, name) as generation:
            generation.read(lambda part, key, info: None)

    try:
        _reading.afresh(read)
    except CorruptCheckpointError:
        return False
    except CheckpointReadError as error:
        raise CheckpointWriteError(
            f"{os.fspath(path)} already holds step {name.step}, and whether it is sound cannot be "
            f"read: {error}; pass replace=True to write a newer generation of it",
            errno=error.errno,
        ) from error
    return True


def _free(root: int) -> int:
    status = os.fstatvfs(root)
    return status.f_bavail * status.f_frsize


def check_space(root: int, path: StrPath, needed: int) -> None:
    """Refuse a save for which there is no room.

    Raises:
        CheckpointWriteError: With what it needs and what there is.
    """
    free = _free(root)
    if free < needed:
        raise CheckpointWriteError(
            f"{os.fspath(path)}: the save needs {needed} bytes, the file system has {free} free; "
            "nothing was written",
            needed=needed,
            free=free,
        )


def write_error(path: StrPath, step: int, needed: int, error: OSError) -> CheckpointWriteError:
    """Return what to raise for an error of the file system during a save."""
    try:
        with _fs.opened(_fs.open_folder(path)) as root:
            free = _free(root)
    except OSError:
        free = None
    name = errno.errorcode.get(error.errno or 0, "error")
    reason = str(error) if isinstance(error, CheckpointReadError) else f"{name} ({error.strerror})"
    return CheckpointWriteError(
        f"step {step} was not saved to {os.fspath(path)}: {reason}; it needs "
        f"{needed} bytes, {'unknown' if free is None else free} free; earlier steps are untouched",
        needed=needed,
        free=free,
        errno=error.errno,
    )


def _write(
    root: int, target: GenerationName, files: Sequence[PlannedFile], document: Document
) -> None:
    temporary = make_temporary(root, target)
    try:
        with _fs.opened(_fs.open_folder(temporary, root)) as folder:
            make_parts(folder, files)
            linked = _link(root, folder, files)
            records = write_files(folder, files, linked)
            seal(folder, files, records, document)
        check_sealed(root, temporary, target)
        publish(root, temporary, target)
    except BaseException:
        # What is known of the steps it was linked from is worth as much as before.
        with relinking(root):
            discard(temporary, root)
        raise


def make_temporary(root: int, target: GenerationName) -> str:
    """Make the folder that will become a generation."""
    temporary = f"{TEMPORARY}{target}-{secrets.token_hex(8)}"
    _fs.ops.make_folder(temporary, root)
    return temporary


def make_parts(folder: int, files: Sequence[PlannedFile]) -> None:
    """Make the folders of the parts that have files."""
    for part in dict.fromkeys(file.part for file in files):
        _fs.ops.make_folder(part, folder)


def _link(root: int, folder: int, files: Sequence[PlannedFile]) -> dict[int, Record]:
    """Link what is to be linked, and return by number what the manifest says of it."""
    records: dict[int, Record] = {}
    changes: dict[Mark, Mark] = {}
    parts = {file.part for file in files if isinstance(file, LinkedFile)}
    try:
        for part in sorted(parts):
            with _fs.opened(_fs.open_folder(part, folder)) as inner:
                for number, file in enumerate(files):
                    if not isinstance(file, LinkedFile) or file.part != part:
                        continue
                    if link(file, inner, changes):
                        old = file.stored.record
                        records[number] = {
                            "name": f"{part}/{file.base}",
                            "size": old.size,
                            "header": old.header,
                            "tensors": dict(old.tensors),
                        }
    finally:
        relinked(root, changes)
    return records


def write_files(
    folder: int, files: Sequence[PlannedFile], linked: Mapping[int, Record]
) -> list[Record]:
    """Write and sync what is not linked, and return what the manifest says about all of it."""
    return [linked.get(i) or _write_file(folder, file) for i, file in enumerate(files)]


def sync_parts(folder: int, files: Sequence[PlannedFile]) -> None:
    """Make the names of files durable: after a power cut they are needed as the bytes are."""
    for part in dict.fromkeys(file.part for file in files):
        with _fs.opened(_fs.open_folder(part, folder)) as inner:
            _fs.ops.sync(inner)


def _write_file(folder: int, file: PlannedFile) -> Record:
    if isinstance(file, LinkedFile):
        file = file.unlinked()
    with _fs.opened(_fs.open_folder(file.part, folder)) as inner:
        record = write_shard(file.layout, file.base, inner)
    record = {"name": f"{file.part}/{file.base}", **record}
    if file.offsets:
        record["offsets"] = {key: list(offset) for key, offset in file.offsets.items()}
    return record


def seal(
    folder: int,
    files: Sequence[PlannedFile],
    records: Sequence[Record],
    document: Document,
    shards: Mapping[str, Mapping[str, Shape]] | None = None,
) -> None:
    """Write the indexes and the manifest of a folder whose files are there, and sync it."""
    _write_indexes(folder, files)
    sync_parts(folder, files)
    manifest = _manifest.build(
        document.step,
        document.framework,
        list(records),
        document.sections,
        shards,
        document.features,
    )
    _write_small(folder, _manifest.NAME, manifest)
    _fs.ops.sync(folder)


def check_sealed(root: int, temporary: str, target: GenerationName) -> None:
    """Open a sealed folder as a restore will, before anything goes by it.

    Manifest, headers and indexes are parsed and compared; the data was hashed when it was written.

    Raises:
        CheckpointWriteError: If the reader does not take it.
    """
    try:
        with Generation(root, target, unnamed=temporary):
            pass
    except CheckpointError as error:
        raise CheckpointWriteError(
            f"step {target.step} was not saved: what was written cannot be read back ({error}); "
            "earlier steps are untouched"
        ) from error


def publish(root: int, temporary: str, target: GenerationName) -> None:
    """Give a sealed folder its name: this is the commit."""
    _fs.ops.rename(temporary, str(target), root)
    try:
        _fs.ops.sync(root)
    except OSError:
        # Visible but perhaps not durable: take it back, so that a save that failed left nothing.
        rename_unread(root, str(target), temporary)
        raise


def _write_indexes(folder: int, files: Sequence[PlannedFile]) -> None:
    for part in dict.fromkeys(file.part for file in files):
        mine = [file for file in files if file.part == part]
        if len(mine) == 1 or any(file.offsets for file in mine):
            continue
        with _fs.opened(_fs.open_folder(part, folder)) as inner:
            raw = index_of(
                (file.base, {entry.name: entry.nbytes for entry in file.layout.entries})
                for file in mine
            )
            _write_small(inner, index_name(part), raw)


def _write_small(folder: int, name: str, raw: bytes) -> None:
    fd = _fs.ops.create(name, folder)
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
