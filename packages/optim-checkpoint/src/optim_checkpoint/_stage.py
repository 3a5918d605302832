# pyright: strict
"""A folder on a local disk for what is on its way to a store or from it.

It is made where `tempfile` makes its own (`TMPDIR` chooses), for this user alone, and removed when
its use ends. What a killed process left the next one removes: a lock says which folder is in use.
"""

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Generator
from pathlib import Path

from optim_checkpoint import _fs, _locks

PREFIX = "optim-checkpoint-staging-"


@contextlib.contextmanager
def staging() -> Generator[Path]:
    """Make a folder and remove it in the end.

    Raises:
        OSError: If none can be made.
    """
    base = Path(tempfile.gettempdir()).absolute()
    with _fs.opened(_fs.open_folder(base)) as parent:
        _sweep(parent)
        name, held = _make(base)
        try:
            yield base / name
        finally:
            with contextlib.suppress(OSError):
                _fs.remove_tree(name, parent)
            held.release()


def _make(base: Path) -> tuple[str, _locks.Held]:
    while True:
        made = tempfile.mkdtemp(prefix=PREFIX, dir=base)
        try:
            held = _locks.take(lambda made=made: _fs.open_folder(made))
        except FileNotFoundError:
            continue
        with contextlib.suppress(OSError):
            fcntl.flock(held.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Another process may have taken it for a left one before it was locked.
        if os.fstat(held.fd).st_nlink:
            return Path(made).name, held
        held.release()


def _sweep(parent: int) -> None:
    with os.scandir(parent) as entries:
        names = [entry.name for entry in entries if entry.name.startswith(PREFIX)]
    for name in names:
        with contextlib.suppress(OSError), _fs.opened(_fs.open_folder(name, parent)) as folder:
            if os.fstat(folder).st_uid != os.geteuid():
                continue
            # Where there are no locks this fails, and nothing is removed.
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _fs.remove_tree(name, parent)
