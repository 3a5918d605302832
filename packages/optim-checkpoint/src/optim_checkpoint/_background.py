# pyright: strict
"""Saving in the background: training waits for a copy in memory, not for the disk."""

import contextlib
import errno
import os
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from optim_checkpoint import _parallel, _unreported
from optim_checkpoint._commit import Document, check_not_spread
from optim_checkpoint._errors import CheckpointError, CheckpointWarning, CheckpointWriteError
from optim_checkpoint._folder import StrPath
from optim_checkpoint._numpy import copy_bytes
from optim_checkpoint._options import Options
from optim_checkpoint._peers import Team
from optim_checkpoint._place import Place, absolute, commit
from optim_checkpoint._policy import Best, Policy
from optim_checkpoint._shard import Entry
from optim_checkpoint._together import save_together
from optim_checkpoint._urls import is_store

# What is read on the training's own thread before the copies of it run: the host copies of tensors
# on another device, all at once, would be a second copy of the state.
_WINDOW = 64 << 20
Memory = npt.NDArray[np.uint8]


class _Writer:
    """A thread that does the work it is given before `go`, or ends without.

    It is started before there is anything to do: an interrupt inside of `Thread.start` leaves open
    whether there is a thread, and then there is nothing that it could do.
    """

    def __init__(self) -> None:
        self._given: list[Callable[[], None]] = []
        self._waits = threading.Lock()
        self._waits.acquire()
        self._works = threading.Lock()
        self._works.acquire()
        self._ended = False
        # Not a daemon: the interpreter does not end before the save has.
        self._thread = threading.Thread(target=self._run, daemon=False)
        self.start = self._thread.start
        self.give = self._given.append
        self.go = self._waits.release

    def join(self) -> None:
        # Not Thread.join: where that is interrupted, Python 3.11 takes the thread for ended. And no
        # `with`: where Python 3.14 is interrupted as it enters, the lock stays taken.
        while not self._ended:
            if self._works.acquire(timeout=1.0):
                self._works.release()

    def _run(self) -> None:
        try:
            self._waits.acquire()
            for work in self._given:
                work()
        finally:
            self._ended = True
            self._works.release()


class BackgroundCheckpointer:
    """Commits one document at a time from a thread of its own.

    The copy goes into memory that is kept from save to save and given back at the end of the `with`
    block: touching new pages costs several times the copy itself. A second save waits for the
    first, so at most one copy of the state exists.

    A failure that no call has raised is printed to the standard error stream when the process ends,
    whose exit status is then 120. In a forked process the checkpointer saves nothing: the thread
    and what it saves stay with the process that made it.

    Args:
        path: The folder of the run; a relative one is that of the working folder now.
        keep: How many generations to keep; None keeps all.
        keep_every: Keep those of which the step is a multiple of it, too.
        keep_best: Keep the best ones by a metric, too: its name, "min" or "max", and how many.
        replace: Whether a step that exists gets a newer generation instead of an error.
        incremental: Whether files of which no tensor has changed are shared with an earlier step,
            as in `save`.
    """

    # The claim of the save that is being copied; each checkpointer's own while there is one.
    _submitting: object = None

    def __init__(
        self,
        path: StrPath,
        *,
        keep: int | None = None,
        keep_every: int | None = None,
        keep_best: Best | None = None,
        replace: bool = False,
        incremental: bool = False,
    ) -> None:
        try:
            # A later change of the working folder must not split the run.
            self._path = absolute(path)
        except OSError as error:
            code = errno.errorcode.get(error.errno or 0, "an error")
            raise CheckpointWriteError(
                f"nothing can be saved to {os.fspath(path)}: {code} ({error.strerror}) for the "
                "working folder; give an absolute path",
                errno=error.errno,
            ) from error
        if is_store(path):
            _unreported.wait_before_executors()
        self._process = os.getpid()
        self._options = Options(keep, keep_every, keep_best, replace, incremental=incremental)
        Policy.of(keep, keep_every, keep_best)
        self._writer: _Writer | None = None
        self._error: BaseException | None = None
        self._failure = object()
        self._last: Place | None = None
        self._staging: Memory = np.empty(0, np.uint8)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.wait()
        except Exception as failed:
            if error is None:
                raise
            # The error that ended the block must not be hidden by a second one.
            warnings.warn(f"the pending save failed: {failed}", CheckpointWarning, stacklevel=2)
        finally:
            # The copy of the state; a save after the block makes another.
            self._staging = np.empty(0, np.uint8)
            self._end()

    def _end(self) -> None:
        """Give back what only a pending save needs."""

    def wait(self) -> Place | None:
        """Wait for the pending save.

        Returns:
            The path of the last committed generation, or None before the first.

        Raises:
            CheckpointError: If the pending save failed; once.
        """
        if os.getpid() != self._process:
            return self._last
        # While it waits, a signal handler may start a save of its own.
        while (pending := self._writer) is not None:
            pending.join()
            if self._writer is pending:
                self._writer = None
        if (error := self._error) is not None:
            self._error = None
            try:
                raise error
            finally:
                _unreported.told(self._failure)
        return self._last

    # An interrupt, or what a signal handler raises, may come after any call. So what a `finally`
    # has to undo is seen by it whether or not the call that did it has come back.
    def _submit(self, document: Document, team: Team | None = None) -> None:
        if team is None:
            check_not_spread(document)
        self._check_process(document.step)
        claim = object()
        try:
            # What is being copied must not be mixed with more. One call decides, without a lock
            # that an interrupt could leave taken.
            if vars(self).setdefault("_submitting", claim) is not claim:
                raise CheckpointWriteError(
                    f"step {document.step} was not saved: another save is being copied; in a "
                    "signal handler set a flag and save after the step, and save from one thread"
                )
            self.wait()
            self._start(document, team)
        finally:
            if self._submitting is claim:
                del self._submitting

    def _submit_together(self, build: Callable[[], Document], team: Team) -> None:
        """Save what this process holds together with others, which make the same call.

        What goes wrong here until the copy is there is raised here, and told to the others, who may
        be writing already.
        """
        try:
            document = build()
        except Exception as error:
            self._refuse(error, team)
            raise
        self._submit(document, team)

    def _start(self, document: Document, team: Team | None) -> None:
        writer = _Writer()
        try:
            try:
                writer.start()
            except RuntimeError as error:
                raise CheckpointWriteError(
                    f"step {document.step} was not saved: {error}; save() needs no thread"
                ) from error
            _unreported.begun(self._failure, writer.join)
            try:
                given = self._stage(document)
            except Exception as error:
                if team is not None:
                    self._refuse(error, team)
                raise
            # Known before it has work, so that no work is ever unknown.
            self._writer = writer
            writer.give(partial(self._commit, *given, team))
        finally:
            writer.go()

    def _check_process(self, step: int) -> None:
        if os.getpid() != self._process:
            raise CheckpointWriteError(
                f"step {step} was not saved: this checkpointer belongs to process {self._process}, "
                f"which forked {os.getpid()}; make one in the process that saves"
            )

    def _stage(self, document: Document) -> tuple[Document, Memory]:
        total = sum(entry.nbytes for entries in document.parts.values() for entry in entries)
        # The memory is that of the copy until the commit has ended: where an interrupt ends one of
        # the two, nothing that still goes on writes or reads what a later save uses.
        memory, self._staging = self._staging, np.empty(0, np.uint8)
        if total > memory.nbytes:
            # Without the old one beside the new one.
            del memory
            try:
                memory = np.empty(total, np.uint8)
            except MemoryError as error:
                raise CheckpointWriteError(
                    f"step {document.step} was not saved: no memory for a copy of {total} bytes; "
                    "save() needs none",
                    needed=total,
                ) from error
        parts: dict[str, Sequence[Entry]] = {}
        start = waiting = 0
        jobs: list[_parallel.Job] = []
        for part, entries in document.parts.items():
            copies: list[Entry] = []
            for entry in entries:
                target = memory[start : start + entry.nbytes]
                start += entry.nbytes
                # On this thread, whose stream the pending computations of a device are ordered by.
                jobs.append((entry.nbytes, partial(copy_bytes, memoryview(target), entry.data())))
                waiting += entry.nbytes
                if waiting >= _WINDOW:
                    _parallel.run(jobs)
                    jobs, waiting = [], 0
                copies.append(replace(entry, read=lambda target=target: memoryview(target)))
            parts[part] = copies
        _parallel.run(jobs)
        return replace(document, parts=parts), memory

    def _refuse(self, error: BaseException, team: Team) -> None:
        """Fail a save by several processes in the others; here the error will be raised."""

        def fail() -> Document:
            raise error

        with contextlib.suppress(CheckpointError, type(error)):
            self._save_together(fail, team)

    def _save_together(self, build: Callable[[], Document], team: Team) -> Place:
        return save_together(self._path, build, team, self._options)

    def _commit(self, document: Document, memory: Memory, team: Team | None) -> None:
        try:
            if team is not None:
                self._last = self._save_together(lambda: document, team)
            else:
                self._last = commit(self._path, document, self._options)
        except BaseException as error:  # noqa: BLE001 - raised by the next wait
            self._error = error
            text = f"a save in the background failed, and nothing has asked for it since: {error}"
            _unreported.note(self._failure, text)
        finally:
            self._staging = memory
            _unreported.ended(self._failure)
