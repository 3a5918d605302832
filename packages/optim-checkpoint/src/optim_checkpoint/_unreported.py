# pyright: strict
"""Failures that nobody has been told of: said at the end of the process, which then fails.

A training that ends well although its last checkpoints are missing would start the next job of a
pipeline. The exit status is 120, Python's own for an error while the interpreter ends. A process of
multiprocessing ends in a way of its own, without what `atexit` has.
"""

import atexit
import contextlib
import importlib
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

STATUS = 120
_failures: dict[object, str] = {}
_begun: dict[object, Callable[[], None]] = {}
# The process whose end multiprocessing was asked to tell of.
_followed: set[int] = set()
_waits = False


def begun(owner: object, join: Callable[[], None]) -> None:
    """Say that an owner has begun what may fail, and how to wait for it."""
    _begun[owner] = join
    # Not imported here: a process that has not loaded them was not made by them.
    package, util = map(sys.modules.get, ("multiprocessing", "multiprocessing.util"))
    if package is None or util is None or package.parent_process() is None:
        return
    # A process of the method spawn ends as any other does.
    if package.get_start_method() != "spawn" and os.getpid() not in _followed:
        # After all others: the least priority runs last.
        util.Finalize(None, _end_of_child, exitpriority=-1_000_000)
        _followed.add(os.getpid())


def wait_before_executors() -> None:
    """See that what is begun may use executors of `concurrent.futures` until it is over.

    Python ends them before it waits for threads, and libraries of stores look up names in them.
    """
    global _waits
    register = getattr(threading, "_register_atexit", None)
    if register is None or _waits:
        return
    # What is registered last is called first, and these register when they are imported.
    importlib.import_module("concurrent.futures.thread")
    with contextlib.suppress(RuntimeError):
        register(_wait)
        _waits = True


def _wait() -> None:
    for join in list(_begun.values()):
        join()


def ended(owner: object) -> None:
    """Say that what an owner has begun is over."""
    _begun.pop(owner, None)


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


def _say() -> bool:
    """Print the failures and forget them; say whether there were any."""
    texts = list(_failures.values())
    _failures.clear()
    # A daemon may have no such stream, or a closed one.
    with contextlib.suppress(AttributeError, OSError, ValueError):
        for text in texts:
            sys.stderr.write(f"optim-checkpoint: {text}\n")
    return bool(texts)


@atexit.register
def _report() -> None:
    # Threads have ended by now: Python waits for them first.
    if os.getpid() not in _followed and _say():
        sys.stderr = _FailingFlush(sys.stderr)


def _end_of_child() -> None:
    # Threads are waited for later, in Python 3.11 and 3.12.
    _wait()
    if not _say():
        return
    if sys.version_info < (3, 13):
        # Called before the status is known. Another error has its own and is still to be printed.
        if isinstance(sys.exc_info()[1], SystemExit | None):
            raise SystemExit(STATUS)
        return
    # Called last of all, after the status was chosen; what follows is os._exit with that.
    with contextlib.suppress(AttributeError, OSError, ValueError):
        sys.stdout.flush()
    with contextlib.suppress(AttributeError, OSError, ValueError):
        sys.stderr.flush()
    os._exit(STATUS)


def _forget() -> None:
    # What a process has begun, and what failed there, is not that of the processes it forks.
    _begun.clear()
    _failures.clear()


os.register_at_fork(after_in_child=_forget)
