# pyright: strict
"""What can go wrong, one class per question a caller asks."""

import errno
import os
from collections.abc import Sequence

SHOWN = 200


def shown(name: object) -> str:
    """Quote text that came from a file: ASCII only and cut, so that it cannot steer a terminal."""
    text = ascii(name)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…({len(text)} characters)"


def printable(text: str) -> str:
    """Escape what could steer a terminal in a text that holds names from a file."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class CheckpointError(Exception):
    """Base of every error this package raises on purpose."""


class CheckpointNotFoundError(CheckpointError):
    """There is no generation to read: the folder, the step or every candidate is missing."""


class CheckpointExistsError(CheckpointError):
    """The step is committed and sound; pass ``replace=True`` to write a newer generation of it."""


class TornRestoreError(CheckpointError):
    """A restore without staging failed midway: live tensors hold parts of what was read."""


class CorruptCheckpointError(CheckpointError):
    """A file is damaged, hostile or not one of ours.

    Attributes:
        file: Path of the file inside the checkpoint, as far as it is known.
        tensor: Name of the tensor, or None where the damage is not in one.
        detail: What differs.
    """

    def __init__(self, file: str, detail: str, *, tensor: str | None = None) -> None:
        self.file = file
        self.tensor = tensor
        self.detail = detail
        where = file if tensor is None else f"{file}, tensor {shown(tensor)}"
        super().__init__(f"{where}: {detail}")


class CheckpointReadError(CheckpointError, OSError):
    """Something could not be read, which says nothing about what is in it; also an `OSError`.

    Attributes:
        errno: What the system said, after a few attempts where that may pass.
        strerror: The same in words.
        filename: Path of the file inside the folder of the run, or of that folder.
        detail: What could not be done.
    """

    def __init__(self, file: str, detail: str, cause: OSError, advice: str = "") -> None:
        number = cause.errno or 0
        super().__init__(number, cause.strerror or os.strerror(number), file)
        self.detail = detail
        self.advice = advice

    def __str__(self) -> str:
        name = errno.errorcode.get(self.errno or 0, "error")
        text = f"{self.filename}: {self.detail}: {name} ({self.strerror})"
        return f"{text}; {self.advice}" if self.advice else text


class IncompatibleCheckpointError(CheckpointError):
    """The checkpoint is sound but does not fit what it is restored into.

    Attributes:
        differences: Every difference found, one sentence each.
    """

    def __init__(self, differences: Sequence[str]) -> None:
        self.differences = tuple(map(printable, differences))
        listed = "\n".join(f"  - {difference}" for difference in self.differences)
        super().__init__(
            f"the checkpoint does not fit ({len(self.differences)} differences); "
            f"nothing was changed:\n{listed}"
        )


class UnsupportedStateError(CheckpointError):
    """A value cannot be stored without pickle, or not without loss.

    Attributes:
        path: Where the value is.
    """

    def __init__(self, path: str, detail: str) -> None:
        self.path = path
        super().__init__(f"{path}: {detail}")


class CheckpointWriteError(CheckpointError):
    """A save failed; committed generations are untouched.

    Attributes:
        needed: Bytes the save needs, where known.
        free: Bytes free on the file system, where known.
        errno: What the system said, where it was the system.
    """

    def __init__(
        self,
        detail: str,
        *,
        needed: int | None = None,
        free: int | None = None,
        errno: int | None = None,
    ) -> None:
        self.needed = needed
        self.free = free
        self.errno = errno
        super().__init__(detail)


class CheckpointWarning(UserWarning):
    """Something was worked around: a damaged generation skipped, a parameter without a name."""
