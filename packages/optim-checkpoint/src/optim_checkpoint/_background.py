# pyright: strict
"""Saving in the background: training waits for a copy in memory, not for the disk."""

import os
import threading
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from optim_checkpoint import _parallel, _unreported
from optim_checkpoint._commit import Document, check_keep, check_not_spread, commit
from optim_checkpoint._errors import CheckpointWarning, CheckpointWriteError
from optim_checkpoint._folder import StrPath
from optim_checkpoint._numpy import copy_bytes
from optim_checkpoint._shard import Entry

# What is read on the training's own thread before the copies of it run: the host copies of tensors
# on another device, all at once, would be a second copy of the state.
_WINDOW = 64 << 20


class BackgroundCheckpointer:
    """Commits one document at a time from a thread of its own.

    The copy goes into memory that is kept from save to save: touching new pages costs several times
    the copy itself. A second save waits for the first, so at most one copy of the state exists.

    A failure that no call has raised is printed to the standard error stream when the process ends,
    whose exit status is then 120. In a forked process the checkpointer saves nothing: the thread
    and what it saves stay with the process that made it.

    Args:
        path: The folder of the run; a relative one is that of the working folder now.
        keep: How many generations to keep; None keeps all.
        replace: Whether a step that exists gets a newer generation instead of an error.
    """

    def __init__(self, path: StrPath, *, keep: int | None = None, replace: bool = False) -> None:
        # A later change of the working folder must not split the run.
        self._path = Path(path).absolute()
        self._process = os.getpid()
        self._keep = check_keep(keep)
        self._replace = replace
        self._thread: threading.Thread | None = None
        self._submitting = threading.Lock()
        self._error: BaseException | None = None
        self._failure = object()
        self._last: Path | None = None
        self._staging: npt.NDArray[np.uint8] = np.empty(0, np.uint8)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.wait()
            return
        # The error that ended the block must not be hidden by a second one.
        try:
            self.wait()
        except Exception as failed:  # noqa: BLE001 - whatever it was, the block's own error counts
            warnings.warn(f"the pending save failed: {failed}", CheckpointWarning, stacklevel=2)

    def wait(self) -> Path | None:
        """Wait for the pending save.

        Returns:
            The path of the last committed generation, or None before the first.

        Raises:
            CheckpointError: If the pending save failed; once.
        """
        if os.getpid() != self._process:
            return self._last
        # While it waits, a signal handler may start a save of its own.
        while (pending := self._thread) is not None:
            pending.join()
            if self._thread is pending:
                self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            _unreported.told(self._failure)
            raise error
        return self._last

    def _submit(self, document: Document) -> None:
        check_not_spread(document)
        self._check_process(document.step)
        # There is one staging memory: what is being copied into it must not be mixed with more.
        if not self._submitting.acquire(blocking=False):
            raise CheckpointWriteError(
                f"step {document.step} was not saved: another save is being copied; in a signal "
                "handler set a flag and save after the step, and save from one thread"
            )
        try:
            self.wait()
            staged = self._stage(document)
            # Not a daemon: the interpreter does not end before the save has.
            thread = threading.Thread(target=self._commit, args=(staged,), daemon=False)
            try:
                thread.start()
            except RuntimeError as error:
                raise CheckpointWriteError(
                    f"step {document.step} was not saved: {error}; save() needs no thread"
                ) from error
            # Only now: a thread that could not be started cannot be waited for.
            self._thread = thread
        finally:
            self._submitting.release()

    def _check_process(self, step: int) -> None:
        if os.getpid() != self._process:
            raise CheckpointWriteError(
                f"step {step} was not saved: this checkpointer belongs to process {self._process}, "
                f"which forked {os.getpid()}; make one in the process that saves"
            )

    def _stage(self, document: Document) -> Document:
        total = sum(entry.nbytes for entries in document.parts.values() for entry in entries)
        if total > self._staging.nbytes:
            # Without the old one beside the new one.
            self._staging = np.empty(0, np.uint8)
            try:
                self._staging = np.empty(total, np.uint8)
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
                target = self._staging[start : start + entry.nbytes]
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
        return replace(document, parts=parts)

    def _commit(self, document: Document) -> None:
        try:
            self._last = commit(self._path, document, keep=self._keep, replace=self._replace)
        except BaseException as error:  # noqa: BLE001 - raised by the next wait
            self._error = error
            text = f"a save in the background failed, and nothing has asked for it since: {error}"
            _unreported.note(self._failure, text)
