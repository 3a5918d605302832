# pyright: strict
"""Reading the disk: what passes is tried again, and only evidence of damage is called damage.

A file that is not there, or is a link or a pipe, is evidence. That a file could not be opened or
read is none: the user may lack a permission, the server may be away. Such an error goes to the
caller, who would otherwise train on from an older step, or have a sound one written over.
"""

import errno
import os
import stat
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from optim_checkpoint import _fs
from optim_checkpoint._errors import CheckpointReadError, CorruptCheckpointError

T = TypeVar("T")
# Tried again after these many seconds each, then raised.
PAUSES = (0.01, 0.05, 0.25)
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def _numbers(*names: str) -> frozenset[int]:
    # Not every system has every one of them.
    return frozenset(getattr(errno, name) for name in names if hasattr(errno, name))


# What a network file system or a kernel short of memory says and a moment later may not.
_PASSING = _numbers(
    "EINTR", "EAGAIN", "EBUSY", "EIO", "EREMOTEIO", "ENOMEM", "ENOBUFS", "ENFILE", "ETIMEDOUT",
    "ENETDOWN", "ENETUNREACH", "ENETRESET", "ECONNABORTED", "ECONNRESET", "ECONNREFUSED",
    "ENOTCONN", "ESHUTDOWN", "EHOSTDOWN", "EHOSTUNREACH",
)  # fmt: skip
# What is missing or of another kind; and what a file system says whose own checksums do not match.
_DAMAGE = _numbers(
    "ENOENT", "ENOTDIR", "EISDIR", "ELOOP", "EMLINK", "ENAMETOOLONG", "EUCLEAN", "EBADMSG"
)
_DESCRIPTORS = _numbers("EMFILE", "ENFILE")


def retried(work: Callable[[], T]) -> T:
    """Return what `work` returns, which is done again after an error that may pass.

    Raises:
        OSError: An error that does not pass, or has not after the last attempt.
    """
    for pause in PAUSES:
        try:
            return work()
        except OSError as error:
            if error.errno not in _PASSING:
                raise
        time.sleep(pause)
    return work()


def afresh(work: Callable[[], T]) -> T:
    """Return what `work` returns, which begins anew where a file handle went stale meanwhile.

    Args:
        work: Opens what it reads itself: a stale descriptor stays one.
    """
    for pause in PAUSES:
        try:
            return work()
        except CheckpointReadError as error:
            if error.errno != errno.ESTALE:
                raise
        time.sleep(pause)
    return work()


def _inside(file: str, what: str, work: Callable[[], T]) -> T:
    """Do `work`, as `retried` does, on something that belongs to a generation."""
    try:
        return retried(work)
    except OSError as error:
        if error.errno in _DAMAGE:
            raise CorruptCheckpointError(file, f"{what}: {error.strerror}") from None
        advice = "that is no evidence of damage, so no older step was taken"
        if error.errno in _DESCRIPTORS:
            advice = "all files of a generation are open at once: raise the limit with ulimit -n"
        raise CheckpointReadError(file, what, error, advice) from error


def open_folder(name: str, folder: int, file: str) -> int:
    """Open a folder of a generation.

    Raises:
        CorruptCheckpointError: If it is missing or no folder.
        CheckpointReadError: If it cannot be opened.
    """
    return _inside(
        file, "is not a folder that can be opened", lambda: _fs.open_folder(name, folder)
    )


def open_regular(name: str, folder: int, file: str) -> tuple[int, int]:
    """Open a file of a generation to read; return its descriptor and size.

    Raises:
        CorruptCheckpointError: If it is missing or no regular file.
        CheckpointReadError: If it cannot be opened.
    """
    try:
        fd = _inside(file, "cannot be opened", lambda: os.open(name, _OPEN, dir_fd=folder))
    except (CorruptCheckpointError, CheckpointReadError):
        # A socket or a device that is not there has errors of its own.
        _check_kind(name, folder, file)
        raise
    try:
        status = _inside(file, "cannot be read", lambda: os.fstat(fd))
        if not stat.S_ISREG(status.st_mode):
            raise CorruptCheckpointError(file, "is not a regular file")
    except BaseException:
        os.close(fd)
        raise
    return fd, status.st_size


def _check_kind(name: str, folder: int, file: str) -> None:
    try:
        mode = retried(lambda: os.stat(name, dir_fd=folder, follow_symlinks=False)).st_mode
    except OSError:
        return
    if stat.S_ISLNK(mode):
        raise CorruptCheckpointError(file, "is a symbolic link") from None
    if not stat.S_ISREG(mode):
        raise CorruptCheckpointError(file, "is not a regular file") from None


def read_some(fd: int, size: int, offset: int, file: str) -> bytes:
    """Return at most `size` bytes from `offset` on; none at the end of the file."""
    return _inside(file, "cannot be read", lambda: os.pread(fd, size, offset))


def read_into(fd: int, out: memoryview, offset: int, file: str) -> None:
    """Fill `out` from `offset` on.

    Raises:
        CorruptCheckpointError: If the file ends before.
        CheckpointReadError: If it cannot be read.
    """
    while out:
        count = _inside(file, "cannot be read", partial(os.preadv, fd, [out], offset))
        if count == 0:
            raise CorruptCheckpointError(file, f"ends at byte {offset}")
        out, offset = out[count:], offset + count
