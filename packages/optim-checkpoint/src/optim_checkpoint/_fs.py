# pyright: strict
"""Every call that changes the disk, one method each.

Nothing else in the package writes. Tests put a subclass in the place of `FileOps` that kills the
process, fails, or writes short at the n-th call, so a call outside this file would go untested; a
test reads the sources to make sure there is none.
"""

import contextlib
import ctypes
import errno
import os
import sys

if sys.platform == "win32":
    raise ImportError(
        "optim-checkpoint needs Linux or macOS: Windows has neither folders that can be opened and "
        "synced nor flock, on which it rests; use the Windows Subsystem for Linux"
    )

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# Linux moves at most 0x7ffff000 bytes in one call and macOS refuses more than INT_MAX.
MAX_WRITE = 0x7FFFF000
_F_FULLFSYNC = 51
_SYNC_FILE_RANGE_WRITE = 2
# Linux alone has it, and Python has no name for it.
_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)
if _sync_file_range is not None:
    _sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


class FileOps:
    """The mutating calls, all relative to an open folder."""

    def make_folder(self, name: str, folder: int) -> None:
        """Create a folder; it must not exist."""
        os.mkdir(name, 0o777, dir_fd=folder)

    def create(self, name: str, folder: int) -> int:
        """Create a file with the caller's umask and open it to write; it must not exist."""
        return os.open(name, _NEW, 0o666, dir_fd=folder)

    def allocate(self, fd: int, size: int) -> None:
        """Reserve `size` bytes, so that a full disk shows before the data is written."""
        if size and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, 0, size)

    def write(self, fd: int, data: memoryview) -> int:
        """Write some of `data` and return how many bytes."""
        return os.write(fd, data[:MAX_WRITE])

    def start_writeback(self, fd: int, start: int, size: int) -> None:
        """Ask the kernel to begin writing a range to the disk; nothing is promised by it."""
        if _sync_file_range is not None:
            _sync_file_range(fd, start, size, _SYNC_FILE_RANGE_WRITE)

    def extend(self, fd: int, size: int) -> None:
        """Make a file `size` bytes long without writing them."""
        os.ftruncate(fd, size)

    def sync(self, fd: int) -> None:
        """Make a file or a folder durable."""
        if sys.platform == "darwin":
            import fcntl

            fcntl.fcntl(fd, _F_FULLFSYNC)
        else:
            os.fsync(fd)

    def close(self, fd: int) -> None:
        """Close a written file; some file systems report a failed write only here."""
        os.close(fd)

    def link(self, old: str, old_folder: int, new: str, new_folder: int) -> None:
        """Give a file another name in another folder."""
        os.link(old, new, src_dir_fd=old_folder, dst_dir_fd=new_folder, follow_symlinks=False)

    def rename(self, old: str, new: str, folder: int) -> None:
        """Rename inside one folder."""
        os.rename(old, new, src_dir_fd=folder, dst_dir_fd=folder)

    def remove(self, name: str, folder: int) -> None:
        """Remove a file."""
        os.unlink(name, dir_fd=folder)

    def remove_folder(self, name: str, folder: int) -> None:
        """Remove an empty folder."""
        os.rmdir(name, dir_fd=folder)


ops = FileOps()

_NO_ALLOCATE = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}


def allocate(fd: int, size: int) -> None:
    """Reserve space where the file system can."""
    try:
        ops.allocate(fd, size)
    except OSError as error:
        if error.errno not in _NO_ALLOCATE:
            raise


def write_all(fd: int, data: memoryview) -> None:
    """Write all of `data`, however short the single writes are."""
    while data:
        written = ops.write(fd, data)
        if written <= 0:
            raise OSError(errno.EIO, "the file system accepted no bytes")
        data = data[written:]


@contextlib.contextmanager
def opened(fd: int):
    """Close a descriptor that was opened to read, whatever happens."""
    try:
        yield fd
    finally:
        os.close(fd)


def open_folder(name: str | os.PathLike[str], folder: int | None = None) -> int:
    """Open a folder; inside another folder, symbolic links are refused."""
    if folder is None:
        return os.open(name, DIRECTORY)
    return os.open(name, DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)


def remove_tree(name: str, folder: int) -> None:
    """Remove a folder with what is in it, as far as it goes.

    Raises:
        OSError: The first thing that could not be removed; the others were tried.
    """
    failed: OSError | None = None
    with opened(open_folder(name, folder)) as inner:
        for entry in sorted(os.listdir(inner)):  # noqa: PTH208 - pathlib knows no folder descriptors
            try:
                status = os.stat(entry, dir_fd=inner, follow_symlinks=False)
                if (status.st_mode & 0o170000) == 0o040000:
                    remove_tree(entry, inner)
                else:
                    ops.remove(entry, inner)
            except OSError as error:
                failed = failed or error
    if failed is not None:
        raise failed
    ops.remove_folder(name, folder)
