# pyright: strict
"""Saving a run to a store: through a local folder, and a commit in the end.

1. the generation is written to a local folder as it would be to the run's, and checked there;
2. its files are put into a folder of the store that nothing else has, and found there;
3. a commit (`_commits`) lists it, and lists no more what retention lets go: this is the commit;
4. only then what is listed no more is removed.

A kill before 3 leaves objects that no reader looks at and the next save removes.

An incremental save begins with an outline of the step before, files of its sizes with its headers
and else no data; what the save to the local folder links of it is in the store already, and the
commit names it where it is.
"""

import contextlib
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from optim_checkpoint import _fs, _proof, _reading
from optim_checkpoint._commit import Document, check_not_spread, with_policy
from optim_checkpoint._commit import commit as commit_to_folder
from optim_checkpoint._commits import (
    Commit,
    Stored,
    change,
    epoch_of,
    folder_of,
    newest,
    retention_notes,
)
from optim_checkpoint._copied import fetch, opened, outline
from optim_checkpoint._errors import (
    CheckpointError,
    CheckpointExistsError,
    CheckpointReadError,
    CheckpointWarning,
    CheckpointWriteError,
    CorruptCheckpointError,
)
from optim_checkpoint._files import check_max_shard_size
from optim_checkpoint._folder import GenerationName, check_step
from optim_checkpoint._options import Options
from optim_checkpoint._policy import Notes, Policy, decide
from optim_checkpoint._stage import staging
from optim_checkpoint._store import Store

# What this process found out about folders of stores, which never change.
_sound: dict[tuple[str, str], bool] = {}
# The objects of what it found damaged: one of them is, and no step more must have it.
_suspect: set[tuple[str, str]] = set()
# Of each store the folder it saved to last, with the manifest, indexes and headers.
_saved: dict[str, tuple[str, dict[str, bytes]]] = {}


def commit_to_store(store: Store, document: Document, options: Options) -> GenerationName:
    """Write a generation to a store.

    Returns:
        Its name. When this returns, a restore finds it.

    Raises:
        CheckpointExistsError: If the step exists undamaged and `options.replace` is false.
        CheckpointWriteError: If it cannot be written, another writer saved meanwhile, or the store
            takes no conditional puts. What was committed before is untouched.
    """
    step, policy = check_step(document.step), options.policy
    check_max_shard_size(options.max_shard_size)
    check_not_spread(document)
    store.require_conditional()
    begun = newest(store)
    target = _target(store, begun, step, replace_step=options.replace)
    document = with_policy(document, policy, begun.names)
    folder = folder_of(target, begun.epoch)
    try:
        with staging() as local:
            known = _outline(store, begun, target, local) if options.incremental else {}
            files = _stage(local, document, options)
            status = {name: path.stat() for name, path in files.items()}
            shared = {n: known[s.st_ino] for n, s in status.items() if s.st_ino in known}
            sizes = {name: each.st_size for name, each in status.items()}
            stored = Stored(folder, sizes, retention_notes(document.sections), shared)
            try:
                for name, path in files.items():
                    if name not in shared:
                        store.upload(path, stored.key(name))
            except BaseException:
                _try_remove(store, stored.own)
                raise
            if options.incremental:
                _saved[store.url] = folder, {name: _head(path) for name, path in files.items()}
    except OSError as error:
        raise _write_error(store, step, error) from error
    _sound[store.url, folder] = True
    try:
        done = change(store, partial(_with, store, begun, target, stored, policy))
    except _OvertakenError:
        _try_remove(store, stored.own)
        raise CheckpointWriteError(
            f"step {step} was not saved: another writer saved to {store} meanwhile; one place has "
            "one writer: give each run its own"
        ) from None
    except OSError as error:
        raise CheckpointWriteError(
            f"step {step} was put to {store}, and its commit could not be confirmed "
            f"({error.strerror}): it is there whole or not at all, and earlier steps are untouched",
            errno=error.errno,
        ) from error
    _clean(store, begun, done, step)
    return target


class _OvertakenError(Exception):
    """Another writer saved after this save had begun."""


def _with(
    store: Store,
    begun: Commit,
    target: GenerationName,
    stored: Stored,
    policy: Policy,
    now: Commit,
) -> Commit | None:
    """Return what follows a commit when a generation is saved; None where it is in it."""
    if now.generations.get(target) == stored:
        return None
    if now.epoch != begun.epoch:
        raise _OvertakenError
    every = {**now.generations, target: stored}
    stays = every
    if policy.keep is not None:
        kept = reasons(store, replace(now, generations=every), target, policy)
        stays = {name: item for name, item in every.items() if name in kept}
    return replace(now, epoch=now.epoch + 1, generations=stays)


def reasons(
    store: Store, commit: Commit, last: GenerationName, policy: Policy
) -> dict[GenerationName, list[str]]:
    """Return why each generation of a commit stays that does."""
    return decide(
        policy,
        commit.names,
        last,
        sound=lambda name: is_sound(store, commit.generations[name]),
        notes=lambda name: Notes.of(commit.generations[name].notes),
        pins=commit.pins,
    )


def is_sound(store: Store, stored: Stored) -> bool:
    """Say whether every file has its size, and no restore of this process found damage."""
    key = store.url, stored.folder
    if key not in _sound:
        try:
            sizes = [store.size(stored.key(name)) for name in stored.files]
        except OSError:
            return False
        _sound[key] = sizes == [*stored.files.values()]
    return _sound[key]


def note_damage(store: Store, name: GenerationName, file: str) -> None:
    """Note that a file was found damaged, so that no save counts its generations as sound."""
    with contextlib.suppress(CheckpointError):
        head = newest(store)
        stored = head.generations.get(name)
        if stored is not None:
            key = stored.key(file.removeprefix(f"{name}/"))
            for each in head.generations.values():
                if each == stored or key in each.keys:
                    _sound[store.url, each.folder] = False
            _suspect.update((store.url, key) for key in stored.keys)


def _target(store: Store, begun: Commit, step: int, *, replace_step: bool) -> GenerationName:
    same = [name for name in begun.names if name.step == step]
    if not same:
        return GenerationName(step)
    if not replace_step:
        # One that was damaged must not end a training that comes here again.
        try:
            with opened(store, same[-1]) as generation:
                generation.read(lambda part, key, info: None)
        except CorruptCheckpointError:
            pass
        except CheckpointReadError as error:
            raise CheckpointWriteError(
                f"{store} already holds step {step}, and whether it is sound cannot be read: "
                f"{error}; pass replace=True to write a newer generation of it",
                errno=error.errno,
            ) from error
        else:
            raise CheckpointExistsError(
                f"{store} already holds step {step} ({same[-1]}); pass replace=True to write a "
                "newer generation of it"
            )
    return GenerationName(step, same[-1].index + 1)


def _files_of(folder: Path) -> dict[str, Path]:
    """Return the files of a generation's folder, by name."""
    return {
        str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()
    }


def _outline(store: Store, begun: Commit, target: GenerationName, local: Path) -> dict[int, str]:
    """Make a local outline of the step before, and return the object of each file by its inode.

    An object is taken for what its commit says if it has its size and no restore of this process
    found damage in the generation: it is not read again.
    """
    before = [name for name in begun.names if name < target]
    for name in reversed(before):
        stored = begun.generations[name]
        if any((store.url, key) in _suspect for key in stored.keys):
            continue
        try:
            lost = _lost(store, stored)
            if lost:
                for each in begun.generations.values():
                    if lost & {*each.keys}:
                        _sound[store.url, each.folder] = False
                continue
            folder, heads = _saved.get(store.url, ("", {}))
            if folder == stored.folder:
                outline(name, stored, heads, local)
            else:
                fetch(store, name, stored, local, data=False)
        except (CheckpointError, OSError):
            # It is written in full; should the store be away, that says so.
            with _fs.opened(_fs.open_folder(local)) as root, contextlib.suppress(OSError):
                _fs.remove_tree(str(name), root)
            continue
        with _fs.opened(_fs.open_folder(local)) as root:
            _proof.remember(root, name, _proof.State.WRITTEN)
        files = _files_of(local / str(name))
        return {path.stat().st_ino: stored.key(file) for file, path in files.items()}
    return {}


def _lost(store: Store, stored: Stored) -> set[str]:
    """Return the objects of a generation that are not there, or not of their size.

    Asked at every save: a rule of a bucket that removes by age takes those first that steps share.
    """
    keys = {stored.key(file): size for file, size in stored.files.items()}
    return {key for key, size in keys.items() if store.size(key) != size}


def _head(path: Path) -> bytes:
    """Return the header of a file of tensors, and all of another."""
    if path.suffix != ".safetensors":
        return path.read_bytes()
    with _fs.opened(_fs.open_folder(path.parent)) as folder:
        fd, _ = _reading.open_regular(path.name, folder, path.name)
    with _fs.opened(fd):
        raw = bytearray(8)
        _reading.read_into(fd, memoryview(raw), 0, path.name)
        raw = bytearray(8 + int.from_bytes(raw, "little"))
        _reading.read_into(fd, memoryview(raw), 0, path.name)
    return bytes(raw)


def _stage(local: Path, document: Document, options: Options) -> dict[str, Path]:
    # What to keep is for the store; and a step of the same number can only be an outline.
    here = Options(
        replace=True, max_shard_size=options.max_shard_size, incremental=options.incremental
    )
    try:
        return _files_of(commit_to_folder(local, document, here))
    except CheckpointWriteError as error:
        raise CheckpointWriteError(
            f"a save to a store goes through a local folder, which TMPDIR chooses: {error}",
            needed=error.needed,
            free=error.free,
            errno=error.errno,
        ) from error
    finally:
        _proof.forget_run(local)


def _write_error(store: Store, step: int, error: OSError) -> CheckpointWriteError:
    own = isinstance(error, CheckpointReadError) or not error.strerror
    reason = str(error) if own else error.strerror
    return CheckpointWriteError(
        f"step {step} was not saved to {store}: {reason}; earlier steps are untouched",
        errno=error.errno,
    )


def _try_remove(store: Store, keys: Sequence[str]) -> None:
    """Remove what was never committed, as far as it goes; the next save removes the rest."""
    with contextlib.suppress(OSError):
        store.remove(keys)


def _clean(store: Store, begun: Commit, done: Commit, step: int) -> None:
    """Remove what the new commit lists no more, and what no commit can list any more."""
    kept = done.keys
    folders = {stored.folder for stored in done.generations.values()}
    every = begun.generations.values()
    try:
        store.remove({key: 0 for stored in every for key in stored.keys if key not in kept})
        for folder in store.names():
            epoch = epoch_of(folder)
            if epoch is not None and epoch < done.epoch and folder not in folders:
                store.remove(key for key in store.keys(folder) if key not in kept)
    except OSError as error:
        warnings.warn(
            f"step {step} is saved, but older objects could not be removed from {store} "
            f"({error.strerror}); every save tries again",
            CheckpointWarning,
            stacklevel=5,
        )
