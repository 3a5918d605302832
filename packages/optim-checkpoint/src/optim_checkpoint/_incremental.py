# pyright: strict
"""Saving what changed: a file of which every tensor is as it was is linked into the new generation.

A generation stays a folder of its own, complete and in the same format: who reads it or removes it
need not know. A link makes no garbage, since a file is linked as a whole or not at all; other
readers go by the headers of all files and would take a tensor that is no longer meant for a live
one. So that few bytes share a file with what changes:

1. a part goes to some hundred files, large tensors to one each;
2. where a file has tensors that changed and others that did not, they are parted.

A file is linked if the digests in the manifest are those of the live tensors, and if it is known to
hold what they say: this process wrote it, and its inode, size and times are as they were then; or
it is read and hashed now.
"""

import contextlib
import errno
import os
import warnings
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from optim_checkpoint import _fs, _parallel, _proof
from optim_checkpoint._digest import new_tensor_digest
from optim_checkpoint._errors import (
    CheckpointError,
    CheckpointReadError,
    CheckpointWarning,
    CorruptCheckpointError,
)
from optim_checkpoint._files import (
    PlannedFile,
    base_of,
    check_file_count,
    lay_out_file,
    plan_file,
    split,
)
from optim_checkpoint._folder import GenerationName
from optim_checkpoint._generation import Generation, StoredFile
from optim_checkpoint._proof import Mark, State, mark
from optim_checkpoint._shard import CHUNK, Entry, Layout

# Of so many files one is at most a hundredth of the state, unless one tensor is more.
FILES = 128
# Below this a file costs more than its bytes.
LEAST = 1 << 20
# More, which gather where ever less changes, are merged, the smallest first.
MOST_LINKED = 2 * FILES
# Read from a device before the digests of it run.
_WINDOW = 64 << 20
# What a file system says that has no links, or takes no more of them, or none from this user; and
# where somebody removed the file.
_NO_LINK = {
    errno.EXDEV, errno.EMLINK, errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOTSUP,
    errno.ENOSYS, errno.ENOENT,
}  # fmt: skip
_warned: set[tuple[int, int]] = set()


@dataclass(frozen=True, slots=True)
class LinkedFile(PlannedFile):
    """A file to link.

    Attributes:
        stored: The open file of the earlier generation.
        folder: The open folder that it is in.
    """

    stored: StoredFile
    folder: int

    def unlinked(self) -> PlannedFile:
        """Return the same to write."""
        return lay_out_file(self.part, self.base, self.layout.entries)


@contextlib.contextmanager
def planned(
    root: int, before: Sequence[GenerationName], parts: Mapping[str, Sequence[Entry]], limit: int
) -> Generator[list[PlannedFile]]:
    """Plan the files of a save; those to be linked are open meanwhile.

    Args:
        root: The open folder of the run, whose lock is held.
        before: The generations that may be linked from, oldest first.
        parts: The tensors of each part.
        limit: Greatest number of bytes of tensors in one file, unless one alone has more.
    """
    total = sum(entry.nbytes for entries in parts.values() for entry in entries)
    aim = min(limit, max(total // FILES, LEAST))
    with contextlib.ExitStack() as stack:
        earlier = _open_newest(stack, root, before)
        files: list[PlannedFile] = []
        for part, entries in parts.items():
            same = _unchanged(entries, earlier, part)
            linked = [] if earlier is None else _linkable(root, earlier, part, same, limit)
            shared = {key for stored in linked for key in stored.tensors}
            groups = _groups([e for e in entries if e.name not in shared], same, aim)
            total = len(linked) + len(groups)
            check_file_count(len(files) + total, limit)
            for number, stored in enumerate(linked):
                mine = tuple(entry for entry in entries if entry.name in stored.tensors)
                base, layout = base_of(part, number, total), Layout(mine, b"", stored.record.size)
                folder = -1 if earlier is None else earlier.folders[part]
                files.append(LinkedFile(part, base, layout, {}, stored, folder))
            files += [plan_file(part, len(linked) + i, total, g) for i, g in enumerate(groups)]
        yield files


def _open_newest(
    stack: contextlib.ExitStack, root: int, before: Sequence[GenerationName]
) -> Generation | None:
    """Open the newest generation that can be opened and is not known to be damaged."""
    for name in reversed(before):
        if _proof.examine(root, name)[0] is State.DAMAGED:
            continue
        try:
            return stack.enter_context(Generation(root, name))
        except CheckpointReadError as error:
            _warn(root, error, "opened")
        except (CheckpointError, MemoryError):
            continue
    return None


def _unchanged(entries: Sequence[Entry], earlier: Generation | None, part: str) -> set[str]:
    """Return the keys of the tensors that the earlier generation holds bit by bit."""
    written = {
        key: (info, stored.record.tensors[key])
        for stored in _files(earlier, part)
        for key, info in stored.tensors.items()
    }
    same: set[str] = set()

    def compare(entry: Entry, data: memoryview, text: str) -> None:
        state = new_tensor_digest(entry.name, entry.dtype, entry.shape)
        for start in range(0, len(data), CHUNK):
            state.update(data[start : start + CHUNK])
        if state.hexdigest() == text:
            same.add(entry.name)

    jobs: list[_parallel.Job] = []
    waiting = 0
    for entry in entries:
        info, text = written.get(entry.name, (None, ""))
        if info is None or (info.dtype, info.shape) != (entry.dtype, entry.shape):
            continue
        # On this thread, whose stream the pending computations of a device are ordered by.
        jobs.append((entry.nbytes, partial(compare, entry, entry.data(), text)))
        waiting += entry.nbytes
        if waiting >= _WINDOW:
            _parallel.run(jobs)
            jobs, waiting = [], 0
    _parallel.run(jobs)
    return same


def _files(earlier: Generation | None, part: str) -> list[StoredFile]:
    """Return the files of a part that hold whole tensors."""
    files = [] if earlier is None else earlier.files
    return [s for s in files if s.record.part == part and not s.record.offsets]


def _linkable(
    root: int, earlier: Generation, part: str, same: set[str], limit: int
) -> list[StoredFile]:
    """Return the files that hold nothing but what is unchanged, and hold that soundly."""
    found = [s for s in _files(earlier, part) if s.tensors and s.tensors.keys() <= same]
    found = [s for s in found if len(s.tensors) == 1 or s.nbytes <= limit]
    found.sort(key=lambda stored: -stored.record.size)
    found = sorted(found[:MOST_LINKED], key=lambda stored: stored.record.base)
    if _proof.state_of(root, earlier.name) is State.WRITTEN:
        return found
    return [stored for stored in found if _verifies(root, earlier, stored)]


def _verifies(root: int, earlier: Generation, stored: StoredFile) -> bool:
    try:
        earlier.check(stored)
        # Somebody may have copied it here a moment ago, and what was read is in memory alone.
        _fs.ops.sync(stored.fd)
    except CorruptCheckpointError as error:
        _proof.damaged(root, earlier.name, error.file)
        warnings.warn(
            f"an earlier step is damaged: {error}; its tensors are written again",
            CheckpointWarning,
            stacklevel=6,
        )
        return False
    except (CheckpointError, OSError):
        return False
    return True


def _groups(entries: Sequence[Entry], same: set[str], aim: int) -> list[list[Entry]]:
    """Distribute what is written: what changes apart from what does not, large from small."""
    groups: list[list[Entry]] = []
    for old in (True, False):
        for large in (True, False):
            mine = [e for e in entries if (e.name in same, 2 * e.nbytes > aim) == (old, large)]
            groups += split(mine, aim)
    return groups


def link(file: LinkedFile, folder: int, changes: dict[Mark, Mark]) -> bool:
    """Link a file into an open folder.

    Args:
        file: The file.
        folder: The open folder.
        changes: Gets what the file was before, and is now.

    Returns:
        Whether it is there; where it cannot be linked, it has to be written.

    Raises:
        OSError: If the folder takes no new name, or the disk has a fault.
    """
    before = os.fstat(file.stored.fd)
    try:
        _fs.ops.link(file.stored.record.base, file.folder, file.base, folder)
    except FileExistsError:
        # The folder was empty: NFS repeats a link whose answer was lost, and tells of its own.
        pass
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        _warn(folder, error, "linked")
        return False
    status = os.stat(file.base, dir_fd=folder, follow_symlinks=False)
    if os.path.samestat(status, before):
        if (status.st_size, status.st_mtime_ns) == (before.st_size, before.st_mtime_ns):
            changes[mark(before)] = mark(status)
        return True
    # Somebody put another file in the place of what was looked at.
    _fs.ops.remove(file.base, folder)
    return False


def _warn(folder: int, error: OSError, what: str) -> None:
    key = os.fstat(folder).st_dev, error.errno or 0
    if key not in _warned:
        _warned.add(key)
        warnings.warn(
            f"incremental: files of the step before cannot be {what} "
            f"({errno.errorcode.get(error.errno or 0, 'error')}: {error.strerror}); they are "
            "written in full, here and without a further word",
            CheckpointWarning,
            stacklevel=6,
        )
