# pyright: strict
"""Several processes that do one thing: all of it, or an error in every one of them."""

import json
from collections.abc import Callable
from typing import Protocol, cast

from optim_checkpoint._errors import (
    CheckpointError,
    CheckpointExistsError,
    CheckpointNotFoundError,
    CheckpointReadError,
    CheckpointWriteError,
    CorruptCheckpointError,
    IncompatibleCheckpointError,
    UnsupportedStateError,
)

Answer = dict[str, object]


class Processes(Protocol):
    """How processes reach each other."""

    @property
    def rank(self) -> int:
        """Which of them this is, from 0."""
        ...

    @property
    def size(self) -> int:
        """How many there are."""
        ...

    def exchange(self, message: bytes) -> list[bytes]:
        """Give every process the messages of all, in the order of their ranks.

        Raises:
            RuntimeError: If one of them does not answer.
        """
        ...

    def gather(self, message: bytes) -> list[bytes]:
        """Give process 0 the messages of all; what the others get does not count.

        Raises:
            RuntimeError: If one of them does not answer.
        """
        ...


class Alone:
    """A process on its own."""

    rank = 0
    size = 1

    def exchange(self, message: bytes) -> list[bytes]:
        """Return the message."""
        return [message]

    gather = exchange


class Team:
    """Processes that take each step together.

    Args:
        processes: How they reach each other.
        task: What they do, for errors.
        failure: What to raise where one of them failed in a way that has no class of ours.
    """

    def __init__(
        self, processes: Processes, task: str, failure: Callable[[str], CheckpointError]
    ) -> None:
        self._processes = processes
        self._failure = failure
        self.task = task
        self.rank = processes.rank
        self.size = processes.size

    def agree(self, work: Callable[[], Answer]) -> list[Answer]:
        """Do the work of this process and return what all of them returned.

        Args:
            work: Returns a JSON object.

        Raises:
            CheckpointError: Here and in every other process, if the work of one failed or if one
                is gone.
        """
        failed: BaseException | None = None
        answer: Answer = {}
        try:
            answer = {"value": work()}
        except BaseException as error:  # noqa: BLE001 - raised again once the others know
            failed = error
            answer = {"error": _describe(error)}
        try:
            answers = self._send(self._processes.exchange, answer)
        except CheckpointError:
            if failed is not None:
                raise failed from None
            raise
        if failed is not None:
            raise failed
        for rank, other in enumerate(answers):
            if "error" in other:
                raise self._rebuild(rank, cast("dict[str, object]", other["error"]))
        return [cast("Answer", other["value"]) for other in answers]

    def gather(self, answer: Answer) -> list[Answer]:
        """Return the answers of all in process 0, and none elsewhere.

        What all send to all grows with the square of their number; this does not.

        Raises:
            CheckpointError: If one is gone.
        """
        found = self._send(self._processes.gather, answer, here=self.rank == 0)
        return found if self.rank == 0 else []

    def _send(
        self, send: Callable[[bytes], list[bytes]], answer: Answer, *, here: bool = True
    ) -> list[Answer]:
        raw = json.dumps(answer, allow_nan=False).encode("ascii")
        try:
            found = send(raw)
            return [cast("Answer", json.loads(other)) for other in found] if here else []
        except RuntimeError as error:
            reason = (str(error).splitlines() or [""])[0]
            raise self._failure(
                f"{self.task}: process {self.rank} of {self.size} cannot reach the others, one has "
                f"failed or is gone: {reason}"
            ) from error

    def _rebuild(self, rank: int, error: dict[str, object]) -> CheckpointError:
        kind, text = str(error["kind"]), str(error["text"])
        where = f"process {rank}"
        if kind == CorruptCheckpointError.__name__:
            tensor = error["tensor"]
            return CorruptCheckpointError(
                str(error["file"]),
                f"{error['detail']} ({where})",
                tensor=None if tensor is None else str(tensor),
            )
        if kind == UnsupportedStateError.__name__:
            path = str(error["path"])
            return UnsupportedStateError(path, f"{text.removeprefix(f'{path}: ')} ({where})")
        if kind == CheckpointReadError.__name__:
            cause = OSError(error["errno"], error["strerror"])
            advice = f"{error['advice']} ({where})"
            return CheckpointReadError(str(error["file"]), str(error["detail"]), cause, advice)
        if kind == IncompatibleCheckpointError.__name__:
            return IncompatibleCheckpointError(cast("list[str]", error["differences"]))
        if kind in _PLAIN:
            return _PLAIN[kind](f"{text} ({where})")
        return self._failure(f"{self.task}: {where} failed with {kind}: {text}")


def alone() -> Team:
    """Return a team of one."""
    return Team(Alone(), "", CheckpointError)


def _describe(error: BaseException) -> dict[str, object]:
    detail: dict[str, object] = {"kind": type(error).__name__, "text": str(error)}
    if isinstance(error, CorruptCheckpointError):
        detail |= {"file": error.file, "detail": error.detail, "tensor": error.tensor}
    elif isinstance(error, CheckpointReadError):
        detail |= {name: getattr(error, name) for name in ("errno", "strerror", "detail", "advice")}
        detail["file"] = error.filename
    elif isinstance(error, UnsupportedStateError):
        detail |= {"path": error.path}
    elif isinstance(error, IncompatibleCheckpointError):
        detail |= {"differences": list(error.differences)}
    return detail


_PLAIN: dict[str, type[CheckpointError]] = {
    kind.__name__: kind
    for kind in (CheckpointExistsError, CheckpointNotFoundError, CheckpointWriteError)
}
