# pyright: strict
"""Advisory locks that end with the process that took them.

A lock of `flock` belongs to the open file, which a forked process shares: a data loader's worker
would keep a killed trainer's lock for as long as it lives. So a forked process closes its copies.
"""

import contextlib
import errno
import fcntl
import os
import warnings
from collections.abc import Callable

from optim_checkpoint import _fs
from optim_checkpoint._errors import CheckpointWarning

BUSY = (errno.EAGAIN, errno.EACCES)
# Lustre without its option `flock`, NFS without a lock daemon, some FUSE and SMB file systems.
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL)
_forks = 0
_warned: set[str] = set()


class Held:
    """A descriptor that has a lock or is to get one; closed in forked processes."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        _held.add(self)

    def release(self) -> None:
        """Give the lock back; nothing to do in a forked process, which has none."""
        if self not in _held:
            return
        _held.discard(self)
        # Closing alone does not where a copy was inherited without a word to Python.
        with contextlib.suppress(OSError):
            fcntl.flock(self.fd, fcntl.LOCK_UN)
        os.close(self.fd)


_held: set[Held] = set()


def _count() -> None:
    global _forks
    _forks += 1


def _forget() -> None:
    for held in _held:
        os.close(held.fd)
    _held.clear()


os.register_at_fork(after_in_parent=_count, after_in_child=_forget)


def take(opening: Callable[[], int]) -> Held:
    """Open a descriptor of which no forked process keeps a copy."""
    while True:
        before = _forks
        held = Held(opening())
        # A process forked in between has a copy that nobody told it of: another descriptor then.
        if before == _forks:
            return held
        held.release()


def exclude(held: Held, place: str) -> bool:
    """Lock against other writers; return whether nobody else had the lock.

    Where the file system has no locks, this warns once and goes on without.
    """
    try:
        fcntl.flock(held.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in BUSY:
            return False
        if error.errno not in _NO_LOCKS:
            raise
        if place not in _warned:
            _warned.add(place)
            warnings.warn(
                f"the file system of {place} has no locks "
                f"({errno.errorcode[error.errno]}): see to it that one process at a time saves "
                "there; of two, one may get an error, but no step that was saved is lost",
                CheckpointWarning,
                stacklevel=5,
            )
    return True


def share(folder: int) -> Callable[[], None] | None:
    """Lock an open folder against its removal, where that is possible; return what ends it."""
    try:
        # A descriptor of its own: a forked process may go on reading through the other one.
        held = take(lambda: _fs.open_folder(".", folder))
    except OSError:
        return None
    with contextlib.suppress(OSError):
        fcntl.flock(held.fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return held.release
    held.release()
    return None
