# pyright: strict
"""Choosing a generation: the one asked for, or the newest that verifies."""

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from optim_checkpoint import _fs
from optim_checkpoint._errors import (
    CheckpointNotFoundError,
    CheckpointWarning,
    CorruptCheckpointError,
)
from optim_checkpoint._folder import (
    GenerationName,
    StrPath,
    check_step,
    generations,
    open_root,
)
from optim_checkpoint._generation import Generation

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Skipped:
    """A generation that was passed over, and why."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class Chosen(Generic[T]):
    """What was read, from where, and what was passed over for it."""

    value: T
    path: Path
    step: int
    skipped: tuple[Skipped, ...]


def candidates(root: int, path: StrPath, step: int | None) -> list[GenerationName]:
    """Return the generations to try, best first.

    Raises:
        CheckpointNotFoundError: If there is none.
    """
    present = generations(root)
    wanted = present if step is None else [name for name in present if name.step == step]
    if wanted:
        return wanted[::-1]
    if step is None:
        raise CheckpointNotFoundError(f"{os.fspath(path)} holds no checkpoint")
    listed = ", ".join(str(name.step) for name in present[-10:]) or "none"
    raise CheckpointNotFoundError(f"{os.fspath(path)} has no step {step}; newest steps: {listed}")


def choose(path: StrPath, step: int | None, read: Callable[[Generation], T]) -> Chosen[T]:
    """Apply `read` to the newest generation for which it does not find damage.

    Args:
        path: The folder of the run.
        step: The step to read, or None for the newest.
        read: Reads and verifies an open generation.

    Returns:
        Its result and the generations skipped, for each of which a `CheckpointWarning` is given.

    Raises:
        CheckpointNotFoundError: If nothing can be tried.
        CorruptCheckpointError: If everything that could be tried is damaged; the newest's error.
    """
    wanted = None if step is None else check_step(step)
    skipped: list[Skipped] = []
    first: CorruptCheckpointError | None = None
    with _fs.opened(open_root(path)) as root:
        for name in candidates(root, path, wanted):
            try:
                with Generation(root, name) as generation:
                    value = read(generation)
            except CorruptCheckpointError as error:
                first = first or error
                skipped.append(Skipped(Path(path) / str(name), str(error)))
                continue
            for item in skipped:
                warnings.warn(
                    f"skipped a damaged checkpoint: {item.reason}", CheckpointWarning, stacklevel=4
                )
            return Chosen(value, Path(path) / str(name), name.step, tuple(skipped))
    if first is None:
        raise AssertionError("candidates() returned nothing")
    raise first
