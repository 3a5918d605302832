# pyright: strict
"""Choosing a generation: the one asked for, or the newest that verifies."""

import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

from optim_checkpoint import _place, _reading
from optim_checkpoint._errors import (
    CheckpointNotFoundError,
    CheckpointWarning,
    CorruptCheckpointError,
    IncompatibleCheckpointError,
)
from optim_checkpoint._folder import GenerationName, StrPath, check_step, parse_name
from optim_checkpoint._generation import Generation
from optim_checkpoint._peers import Answer, Team, alone
from optim_checkpoint._place import Place

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Skipped:
    """A generation that was passed over, and why."""

    path: Place
    reason: str


@dataclass(frozen=True, slots=True)
class Chosen(Generic[T]):
    """What was read, from where, and what was passed over for it."""

    value: T
    path: Place
    step: int
    skipped: tuple[Skipped, ...]


def candidates(path: StrPath, step: int | None) -> list[GenerationName]:
    """Return the generations to try, best first.

    Raises:
        CheckpointNotFoundError: If there is none.
    """
    present = _place.present(path)
    wanted = present if step is None else [name for name in present if name.step == step]
    if wanted:
        return wanted[::-1]
    if step is None:
        raise CheckpointNotFoundError(f"{os.fspath(path)} holds no checkpoint")
    newest = list(dict.fromkeys(str(name.step) for name in present))[-10:]
    listed = ", ".join(newest) or "none"
    raise CheckpointNotFoundError(f"{os.fspath(path)} has no step {step}; newest steps: {listed}")


def choose(
    path: StrPath, step: int | None, read: Callable[[Generation], T], team: Team | None = None
) -> Chosen[T]:
    """Apply `read` to the newest generation for which it does not find damage.

    Args:
        path: The folder of the run.
        step: The step to read, or None for the newest.
        read: Reads and verifies an open generation.
        team: The processes that must all take the same generation; None is this one alone.

    Returns:
        Its result and the generations skipped, for each of which a `CheckpointWarning` is given.

    Raises:
        CheckpointNotFoundError: If nothing can be tried.
        CorruptCheckpointError: If everything that could be tried is damaged; the newest's error.
        CheckpointReadError: If one cannot be read: whether it is damaged is then not known.
    """
    readers = alone() if team is None else team
    skipped: list[Skipped] = []
    first: CorruptCheckpointError | None = None
    for name in _until_one_fits(path, step, readers):
        try:
            value = _read_together(path, name, read, readers)
        except CorruptCheckpointError as error:
            first = first or error
            _place.note_damage(path, name, error.file)
            skipped.append(Skipped(_place.inside(path, name), str(error)))
            continue
        for item in skipped:
            warnings.warn(
                f"skipped a damaged checkpoint: {item.reason}", CheckpointWarning, stacklevel=4
            )
        return Chosen(value, _place.inside(path, name), name.step, tuple(skipped))
    if first is None:
        raise AssertionError("candidates() returned nothing")
    raise first


def _until_one_fits(path: StrPath, step: int | None, team: Team) -> Iterator[GenerationName]:
    """Yield the generations to try, and where none was good those that came meanwhile.

    Retention may remove what was listed, but only after something newer was committed.
    """
    tried: list[GenerationName] = []
    names = _agreed_candidates(path, step, team)
    while names:
        yield from names
        tried += names
        try:
            names = [n for n in _agreed_candidates(path, step, team) if n not in tried]
        except CheckpointNotFoundError:
            return


def _agreed_candidates(path: StrPath, step: int | None, team: Team) -> list[GenerationName]:
    def listed() -> Answer:
        wanted = None if step is None else check_step(step)
        return {"names": [str(name) for name in candidates(path, wanted)]}

    # A folder may change while the processes look: they go by what the first one saw.
    answers = team.agree(lambda: _reading.afresh(listed))
    names = cast("list[str]", answers[0]["names"])
    return [name for name in map(parse_name, names) if name is not None]


def _read_together(
    path: StrPath, name: GenerationName, read: Callable[[Generation], T], team: Team
) -> T:
    """Read a generation in every process, or raise in every one what one of them found.

    Damage counts before differences: a damaged generation says nothing about what would fit.
    """
    values: list[T] = []
    damage: CorruptCheckpointError | None = None
    differences: list[str] = []

    def attempt() -> Answer:
        nonlocal damage
        answer: Answer = {}
        try:
            with _place.opened(path, name) as generation:
                answer["id"] = generation.manifest.checkpoint_id
                values.append(read(generation))
        except CorruptCheckpointError as error:
            damage = error
            answer["damage"] = [error.file, error.detail, error.tensor]
        except IncompatibleCheckpointError as error:
            answer["differences"] = list(error.differences)
        return answer

    answers = team.agree(lambda: _reading.afresh(attempt))
    for rank, answer in enumerate(answers):
        if damage is None and "damage" in answer:
            file, detail, tensor = cast("tuple[str, str, str | None]", answer["damage"])
            damage = CorruptCheckpointError(file, f"{detail} (process {rank})", tensor=tensor)
        differences += [
            item
            for item in cast("list[str]", answer.get("differences", []))
            if item not in differences
        ]
    if damage is not None:
        raise damage
    for rank, answer in enumerate(answers):
        # Disks that are not shared, or a step that was retired and saved again in between.
        if answer["id"] != answers[0]["id"]:
            raise CorruptCheckpointError(
                str(name),
                f"is {answers[0]['id']} for process 0 and {answer['id']} for process {rank}: all "
                "processes need one file system",
            )
    if differences:
        raise IncompatibleCheckpointError(differences)
    return values[0]
