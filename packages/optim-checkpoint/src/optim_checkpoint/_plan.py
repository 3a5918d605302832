# pyright: strict
"""Who writes what: the same plan in every process, from what each one says it has."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

from optim_checkpoint._boxes import Offset, Shape, grid_fault
from optim_checkpoint._commit import Document
from optim_checkpoint._digest import digest
from optim_checkpoint._errors import CheckpointWriteError, UnsupportedStateError, shown
from optim_checkpoint._files import PlannedFile, ShardEntry, check_file_count, plan_file, split
from optim_checkpoint._json import dumps
from optim_checkpoint._peers import Answer
from optim_checkpoint._shard import Entry

Place = tuple[str, str, Offset | None]
Ranked = Sequence[Answer]


@dataclass
class Plan:
    """What a save by several processes will write; the same in each of them.

    Attributes:
        files: The files of each process.
        owners: Which process writes a tensor or a shard of one.
        shards: For each part the sharded tensors with their whole shapes.
    """

    files: list[list[PlannedFile]] = field(default_factory=list[list[PlannedFile]])
    owners: dict[Place, int] = field(default_factory=dict[Place, int])
    shards: dict[str, dict[str, Shape]] = field(default_factory=dict[str, dict[str, Shape]])

    @property
    def all_files(self) -> list[PlannedFile]:
        """All files, ordered by part and name."""
        listed = [file for files in self.files for file in files]
        return sorted(listed, key=lambda file: (file.part, file.base))


def describe(document: Document, limit: int) -> Answer:
    """Return what one process tells the others about its part of a save."""
    sections: dict[str, str] = {}
    _fingerprint("", dict(document.sections), sections, 2)
    return {
        "step": document.step,
        "max_shard_size": limit,
        "sections": sections,
        "own": dict(document.own or {}),
        "features": sorted(document.features),
        "shards": {part: sorted(shapes) for part, shapes in document.shards.items()},
        "parts": {
            part: [
                [
                    entry.name,
                    entry.dtype,
                    list(entry.shape),
                    list(entry.offset) if isinstance(entry, ShardEntry) else None,
                    list(entry.whole) if isinstance(entry, ShardEntry) else None,
                ]
                for entry in entries
            ]
            for part, entries in document.parts.items()
        },
    }


def _fingerprint(path: str, value: object, out: dict[str, str], depth: int) -> None:
    """Digest a value piece by piece, so that a difference can be named."""
    if depth and isinstance(value, dict) and value:
        for key, item in cast("dict[str, object]", value).items():
            _fingerprint(f"{path}.{key}" if path else key, item, out, depth - 1)
    elif depth and isinstance(value, list) and value:
        for i, item in enumerate(cast("list[object]", value)):
            _fingerprint(f"{path}[{i}]", item, out, depth - 1)
    else:
        out[path] = digest(dumps(cast("object", value)))


def check_same(answers: Ranked) -> None:
    """Refuse a save in which processes differ outside of the tensors.

    Raises:
        UnsupportedStateError: With the first place where they do.
        CheckpointWriteError: If they were not even called alike.
    """
    for what in ("step", "max_shard_size"):
        values = [answer[what] for answer in answers]
        if len(set(map(str, values))) > 1:
            raise CheckpointWriteError(f"the processes save with different {what}: {shown(values)}")
    first = cast("dict[str, str]", answers[0]["sections"])
    for rank, answer in enumerate(answers):
        other = cast("dict[str, str]", answer["sections"])
        differing = sorted(
            path for path in first.keys() | other.keys() if first.get(path) != other.get(path)
        )
        if differing:
            more = f" and in {len(differing) - 1} more places" if len(differing) > 1 else ""
            raise UnsupportedStateError(
                shown(differing[0])[1:-1],
                f"process 0 and process {rank} differ here{more}; what is not sharded must be "
                "equal in all of them",
            )


def _unread() -> memoryview:
    raise AssertionError("this entry belongs to another process")


def _entries(answer: Answer, part: str) -> list[Entry]:
    rows = cast("dict[str, list[list[object]]]", answer["parts"]).get(part, [])
    entries: list[Entry] = []
    for name, dtype, shape, offset, whole in rows:
        dims = tuple(cast("list[int]", shape))
        if offset is None:
            entries.append(Entry(str(name), str(dtype), dims, _unread))
        else:
            box = tuple(cast("list[int]", offset)), tuple(cast("list[int]", whole))
            entries.append(ShardEntry(str(name), str(dtype), dims, _unread, *box))
    return entries


def place_of(part: str, entry: Entry) -> Place:
    """Return what two processes that hold the same tensor, or the same shard, agree on."""
    return part, entry.name, entry.offset if isinstance(entry, ShardEntry) else None


def make_plan(answers: Ranked, document: Document, rank: int, limit: int) -> Plan:
    """Decide who writes what to which file.

    Args:
        answers: What `describe` returned in each process.
        document: What this process holds.
        rank: Which process this is.
        limit: Greatest number of bytes of tensors in one file, unless one alone has more.

    Raises:
        UnsupportedStateError: If shards do not make up the whole.
    """
    plan = Plan([[] for _ in answers])
    kinds: dict[Place, tuple[str, Shape]] = {}
    for part in document.parts:
        owned: list[list[Entry]] = []
        for number, answer in enumerate(answers):
            listed = document.parts[part] if number == rank else _entries(answer, part)
            mine: list[Entry] = []
            for entry in listed:
                place = place_of(part, entry)
                kind = (entry.dtype, entry.shape)
                if kinds.setdefault(place, kind) != kind:
                    raise UnsupportedStateError(
                        shown(entry.name)[1:-1],
                        f"is {kinds[place]} in process {plan.owners[place]}, {kind} in {number}",
                    )
                if plan.owners.setdefault(place, number) == number:
                    mine.append(entry)
            owned.append(mine)
        _check_grids(part, owned, plan)
        groups = [split(entries, limit) for entries in owned]
        total, number = sum(map(len, groups)), 0
        check_file_count(total + sum(map(len, plan.files)), limit)
        for files, listed in zip(plan.files, groups, strict=True):
            for entries in listed:
                files.append(plan_file(part, number, total, entries))
                number += 1
    _check_held(answers, plan)
    return plan


def _check_held(answers: Ranked, plan: Plan) -> None:
    for answer in answers:
        for part, keys in cast("dict[str, list[str]]", answer["shards"]).items():
            for key in keys:
                if key not in plan.shards.get(part, {}):
                    raise UnsupportedStateError(
                        shown(key)[1:-1],
                        "cannot be stored: none of the processes that save holds any of it",
                    )


def _check_grids(part: str, owned: Sequence[Sequence[Entry]], plan: Plan) -> None:
    boxes: dict[str, list[ShardEntry]] = {}
    names: set[str] = set()
    for entry in (entry for entries in owned for entry in entries):
        if isinstance(entry, ShardEntry):
            boxes.setdefault(entry.name, []).append(entry)
        else:
            names.add(entry.name)
    for key, shards in boxes.items():
        first = shards[0]
        fault = grid_fault(first.whole, [(shard.offset, shard.shape) for shard in shards])
        if any((s.whole, s.dtype) != (first.whole, first.dtype) for s in shards) or key in names:
            fault = "the processes do not agree on its shape and dtype"
        if fault is not None:
            raise UnsupportedStateError(shown(key)[1:-1], f"cannot be stored: {fault}")
        plan.shards.setdefault(part, {})[key] = first.whole
