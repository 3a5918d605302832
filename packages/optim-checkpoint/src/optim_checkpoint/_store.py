# pyright: strict, reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
"""The few things that are asked of an object store, through fsspec.

A store is believed as little as a disk is: what was put counts once it was found there. So it does
not matter which error a put gave, or whether a library repeated it.
"""

import errno
import os
import secrets
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from optim_checkpoint._errors import CheckpointError, CheckpointWriteError, shown
from optim_checkpoint._reading import PAUSES
from optim_checkpoint._urls import shown_url

T = TypeVar("T")
# What another attempt does not change.
_FINAL = (FileNotFoundError, PermissionError, FileExistsError, NotImplementedError)
_conditional: set[str] = set()


def _as_os(error: BaseException) -> OSError:
    """Return what a store's library raised as an error of the system, in one line."""
    if isinstance(error, OSError) and error.errno and error.strerror:
        return OSError(error.errno, error.strerror)
    number = errno.EACCES if isinstance(error, PermissionError) else errno.EIO
    line = (str(error).strip().splitlines() or [""])[0]
    text = shown(line)[1:-1] if line else "no reason given"
    return OSError(
        number, text if isinstance(error, OSError) else f"{type(error).__name__}: {text}"
    )


def _wait(seconds: float) -> None:
    # A sleep of no time gives the processor away, and a busy machine comes back late.
    if seconds:
        time.sleep(seconds)


def _tried(work: Callable[[], T]) -> T:
    """Return what `work` returns, tried again after an error that may pass.

    Raises:
        OSError: The last error, whatever the library raised.
    """
    for pause in (*PAUSES, None):
        try:
            return work()
        except _FINAL as error:
            raise error if isinstance(error, FileNotFoundError) else _as_os(error) from error
        except Exception as error:
            if pause is None:
                raise _as_os(error) from error
            _wait(pause)
    raise AssertionError("the last attempt returns or raises")


class Store:
    """The place of a run in a store.

    Args:
        url: Any URL of fsspec with one protocol.

    Attributes:
        url: The same without a slash at its end.
        name: The same for people, without a password.

    Raises:
        CheckpointError: If it names no place, or fsspec or the library of the protocol is missing,
            or nobody knows it.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.name = shown_url(self.url)
        if self.url.endswith(":"):
            raise CheckpointError(
                f"{shown_url(url)} names no place in its store: give the run a name, as in "
                f"{self.url}//run"
            )
        if "::" in self.url:
            raise CheckpointError(
                f"{self.name} is a chain of file systems, which may show an old copy of what is "
                "there: give the URL of the store alone"
            )
        try:
            import fsspec.core
        except ModuleNotFoundError as error:
            raise CheckpointError(
                f"{self.name} needs {error.name}, which is not installed: "
                "pip install 'optim-checkpoint[fsspec]'"
            ) from error
        try:
            fs, root = fsspec.core.url_to_fs(self.url)
        except Exception as error:
            raise CheckpointError(f"{self.name} cannot be opened: {_as_os(error).strerror}") from (
                error
            )
        # A library without types.
        self._fs: Any = fs
        self._root = str(root).rstrip("/")

    def __str__(self) -> str:
        return self.name

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"

    def read(self, key: str, end: int | None = None) -> bytes | None:
        """Return the bytes of an object, or its first `end` ones; None where there is none."""
        # By name: libraries have arguments of their own in between.
        limits = {} if end is None else {"start": 0, "end": end}
        try:
            return bytes(_tried(lambda: self._fs.cat_file(self._path(key), **limits)))
        except FileNotFoundError:
            return None

    def size(self, key: str) -> int | None:
        """Return the size of an object; None where there is none."""

        def ask() -> int:
            self._fs.invalidate_cache()
            return int(self._fs.info(self._path(key))["size"])

        try:
            return _tried(ask)
        except FileNotFoundError:
            return None

    def download(self, key: str, target: Path) -> bool:
        """Copy an object to a file; return whether there is one."""
        try:
            _tried(lambda: self._fs.get_file(self._path(key), str(target)))
        except FileNotFoundError:
            return False
        return True

    def upload(self, source: Path, key: str) -> None:
        """Copy a file to an object, and see that all of it is there.

        Raises:
            OSError: If it is not, after a few attempts.
        """
        size = source.stat().st_size
        failed: BaseException | None = None
        for pause in (0.0, *PAUSES):
            _wait(pause)
            try:
                self._fs.put_file(str(source), self._path(key))
            except Exception as error:  # noqa: BLE001 - whether it is there counts
                failed = error
                if isinstance(error, _FINAL):
                    break
            if self.size(key) == size:
                return
        raise (
            OSError(errno.EIO, f"{key} was put and is not there")
            if failed is None
            else _as_os(failed)
        )

    def put(self, key: str, data: bytes) -> None:
        """Write an object over what is there."""
        _tried(lambda: self._fs.pipe_file(self._path(key), data))

    def settle(self, key: str, data: bytes) -> bytes:
        """Make an object unless there is one, and return what is there then.

        Raises:
            OSError: If nothing is: the put may still arrive, and then makes the object.
        """
        failed: BaseException | None = None
        for pause in (0.0, *PAUSES):
            _wait(pause)
            try:
                self._fs.pipe_file(self._path(key), data, mode="create")
            except Exception as error:  # noqa: BLE001 - what is there counts
                failed = error
            found = self.read(key)
            if found is not None:
                return found
        raise (
            OSError(errno.EIO, f"{key} was put and is not there")
            if failed is None
            else _as_os(failed)
        )

    def remove(self, keys: Iterable[str]) -> None:
        """Remove objects, where they are there.

        Raises:
            OSError: The first error; the others were tried.
        """
        failed: OSError | None = None
        for key in keys:
            try:
                _tried(lambda key=key: self._fs.rm_file(self._path(key)))
            except FileNotFoundError:
                continue
            except OSError as error:
                failed = failed or error
        if failed is not None:
            raise failed

    def names(self) -> list[str]:
        """List what is directly in the place; perhaps not all, and things that are gone."""
        return [
            name.rpartition("/")[2]
            for name in self._listed(lambda: self._fs.ls(self._root, detail=False))
        ]

    def keys(self, folder: str) -> list[str]:
        """List the objects under a folder, as `names` does."""
        found = self._listed(lambda: self._fs.find(self._path(folder)))
        return [name[len(self._root) + 1 :] for name in found]

    def _listed(self, work: Callable[[], Iterable[str]]) -> list[str]:
        def ask() -> list[str]:
            self._fs.invalidate_cache()
            return [str(name).rstrip("/") for name in work()]

        try:
            return _tried(ask)
        except FileNotFoundError:
            return []

    def require_conditional(self) -> None:
        """See that a put can be made to fail where there is an object; once in a process.

        fsspec's own way for a library without such puts is to look first, which two writers can do
        at once.

        Raises:
            CheckpointWriteError: If it cannot, or nothing can be written at all.
        """
        if self.url in _conditional:
            return
        if not _has_own_puts(self._fs):
            raise self._unconditional("its library has none")
        key = f"probe-{secrets.token_hex(8)}"
        first, second = b"the first put", b"a put over it"
        try:
            found = self.settle(key, first)
        except OSError as error:
            self._check_plain_put(key, first)
            raise self._unconditional(str(error.strerror)) from error
        try:
            over = self.settle(key, second)
            self.remove([key])
        except OSError as error:
            raise CheckpointWriteError(
                f"{self.name} cannot be read back or removed from: {error.strerror}",
                errno=error.errno,
            ) from error
        if over == second:
            raise self._unconditional("it overwrites all the same")
        if found != first:
            raise CheckpointWriteError(f"{self.name}: what is put comes back as something else")
        _conditional.add(self.url)

    def _check_plain_put(self, key: str, data: bytes) -> None:
        try:
            self.put(key, data)
            self.remove([key])
        except OSError as error:
            raise CheckpointWriteError(
                f"{self.name} cannot be written: {error.strerror or error}; nothing was saved",
                errno=error.errno,
            ) from error

    def _unconditional(self, reason: str) -> CheckpointWriteError:
        return CheckpointWriteError(
            f"{self.name} takes no conditional puts ({reason}), without which one writer could "
            "replace what another has committed; nothing was saved: it can be read from, save to "
            "a folder or to another store"
        )


def _has_own_puts(fs: Any) -> bool:
    from fsspec.asyn import AsyncFileSystem
    from fsspec.spec import AbstractFileSystem

    kind: Any = type(fs)
    if isinstance(fs, AsyncFileSystem):
        return kind._pipe_file is not AsyncFileSystem._pipe_file  # pyright: ignore[reportPrivateUsage]
    return kind.pipe_file is not AbstractFileSystem.pipe_file


def open_store(path: str | os.PathLike[str]) -> Store:
    """Return the store of a URL."""
    return Store(os.fspath(path))
