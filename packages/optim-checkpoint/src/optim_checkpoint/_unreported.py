# pyright: strict
"""Failures that nobody has been told of: said at the end of the process, which then fails.

A training that ends well although its last checkpoints are missing would start the next job of a
pipeline. The exit status is 120, Python's own for an error while the interpreter ends.
"""

import atexit
import contextlib
import os
import sys
from typing import Any

_failures: dict[object, str] = {}


def note(owner: object, text: str) -> None:
    """Keep a failure until `told` says that somebody has heard of it."""
    _failures[owner] = text


def told(owner: object) -> None:
    """Forget the failure of an owner."""
    _failures.pop(owner, None)


class _FailingFlush:
    """The standard error stream; flushing it at the very end fails, which sets the exit status.

    Leaving with `os._exit` would set it too, and skip whatever else wants to be done at the end.
    """

    # A closed stream would not be flushed.
    closed = False

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def flush(self) -> None:
        if not getattr(self._stream, "closed", True):
            self._stream.flush()
        if sys.is_finalizing():
            raise OSError("a save in the background has failed")


@atexit.register
def _report() -> None:
    # Threads have ended by now: Python waits for them first.
    if not _failures:
        return
    # A daemon may have no such stream, or a closed one.
    with contextlib.suppress(AttributeError, OSError, ValueError):
        for text in _failures.values():
            sys.stderr.write(f"optim-checkpoint: {text}\n")
    sys.stderr = _FailingFlush(sys.stderr)


# What failed in a process is its own to report, not that of the processes it forks.
os.register_at_fork(after_in_child=_failures.clear)
