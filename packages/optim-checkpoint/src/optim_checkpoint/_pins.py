# pyright: strict
"""Steps that retention must not remove: a small file each in the folder of the run.

The file counts by its name; what it holds is the reason. So one that was cut off by a crash pins
its step all the same.
"""

import contextlib
import os
import re
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from optim_checkpoint import _fs, _reading
from optim_checkpoint._commits import Commit, change
from optim_checkpoint._errors import (
    CheckpointError,
    CheckpointNotFoundError,
    CheckpointWriteError,
    shown,
)
from optim_checkpoint._folder import (
    GenerationName,
    StrPath,
    check_step,
    generations,
    locked,
    open_root,
)
from optim_checkpoint._store import open_store
from optim_checkpoint._urls import is_store, local

_PIN = re.compile(r"\.pin-step-([0-9]{8,19})\Z", re.ASCII)
MAX_REASON = 1000
# A save holds the lock of the folder for as long as it writes.
WAIT = 60.0


def pin(path: StrPath, step: int, reason: str) -> None:
    """Keep a step whatever a save is told to keep.

    Args:
        path: The folder of the run.
        step: The step; it must be there. All generations of it stay.
        reason: Why, for people; it replaces the reason of an earlier pin.

    Raises:
        CheckpointNotFoundError: If there is no such step.
        CheckpointWriteError: If it cannot be written, or a save goes on for over a minute.
        ValueError: If the reason is empty, or longer than 1,000 characters.
    """
    number = check_step(step)
    if not isinstance(reason, str) or not reason.strip() or len(reason) > MAX_REASON:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(
            f"reason is {shown(reason)}; it must be a text of 1 to {MAX_REASON} characters"
        )
    if is_store(path):
        _change(path, partial(_pinned, path, number, reason))
        return
    path = local(path)
    with _fs.opened(open_root(path)) as root:
        _when_free(root, path, lambda: _write(root, path, number, reason))


def unpin(path: StrPath, step: int) -> None:
    """Take a pin back; the next save may remove the step.

    Raises:
        CheckpointNotFoundError: If the step is not pinned.
        CheckpointWriteError: If it cannot be removed, or a save goes on for over a minute.
    """
    number = check_step(step)
    if is_store(path):
        _change(path, _unpinned(path, number))
        return
    path = local(path)
    with _fs.opened(open_root(path)) as root:
        _when_free(root, path, lambda: _remove(root, path, number))


def _change(path: StrPath, edit: Callable[[Commit], Commit | None]) -> None:
    store = open_store(path)
    store.require_conditional()
    try:
        change(store, edit)
    except OSError as error:
        raise CheckpointWriteError(
            f"{store}: a pin cannot be changed: {error.strerror}", errno=error.errno
        ) from error


def _pinned(path: StrPath, step: int, reason: str, now: Commit) -> Commit:
    _check_there(path, step, now.names)
    # As it comes back from a folder, where it is a file.
    text = shown(reason.encode("utf-8", "replace").decode())[1:-1]
    return replace(now, pins={**now.pins, step: text})


def _unpinned(path: StrPath, step: int) -> Callable[[Commit], Commit | None]:
    found = False

    def edit(now: Commit) -> Commit | None:
        nonlocal found
        if step in now.pins:
            found = True
            return replace(now, pins={s: why for s, why in now.pins.items() if s != step})
        if not found:
            raise _not_pinned(path, step)
        return None

    return edit


def _check_there(path: StrPath, step: int, names: Sequence[GenerationName]) -> None:
    if all(name.step != step for name in names):
        raise CheckpointNotFoundError(f"{os.fspath(path)} has no step {step} to pin")


def _not_pinned(path: StrPath, step: int) -> CheckpointNotFoundError:
    return CheckpointNotFoundError(f"{os.fspath(path)}: step {step} is not pinned")


def pins(root: int) -> dict[int, str]:
    """Return the reasons of the pinned steps of an open root."""
    found: dict[int, str] = {}
    for name in os.listdir(root):
        match = _PIN.match(name)
        if match is not None and name == _name(int(match[1])):
            found[int(match[1])] = _reason(root, name)
    return found


def _name(step: int) -> str:
    return f".pin-{GenerationName(step)}"


def _reason(root: int, name: str) -> str:
    try:
        fd, _ = _reading.open_regular(name, root, name)
        with _fs.opened(fd):
            raw = _reading.read_some(fd, 4 * MAX_REASON, 0, name)
    except CheckpointError:
        return "the reason cannot be read"
    return shown(raw.decode("utf-8", "replace"))[1:-1] or "no reason"


def _when_free(root: int, path: StrPath, work: Callable[[], None]) -> None:
    end = time.monotonic() + WAIT
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(locked(root, path))
                break
            except CheckpointWriteError:
                if time.monotonic() > end:
                    raise
            time.sleep(0.05)
        try:
            work()
        except CheckpointError:
            raise
        except OSError as error:
            raise CheckpointWriteError(
                f"{os.fspath(path)}: a pin cannot be changed: {error.strerror}", errno=error.errno
            ) from error


def _write(root: int, path: StrPath, step: int, reason: str) -> None:
    _check_there(path, step, generations(root, path))
    temporary = f"{_name(step)}.{secrets.token_hex(8)}"
    fd = _fs.ops.create(temporary, root)
    try:
        _fs.write_all(fd, memoryview(reason.encode("utf-8", "replace")))
        _fs.ops.sync(fd)
    finally:
        os.close(fd)
    _fs.ops.rename(temporary, _name(step), root)
    _fs.ops.sync(root)


def _remove(root: int, path: StrPath, step: int) -> None:
    try:
        _fs.ops.remove(_name(step), root)
    except FileNotFoundError:
        raise _not_pinned(path, step) from None
    _fs.ops.sync(root)
