# pyright: strict
"""Who writes what, from what each process says it has: for what `_claims` cannot settle.

Every process hears all of every other here, which many processes are slow at.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from optim_checkpoint._boxes import Offset, Shape, grid_fault
from optim_checkpoint._commit import Document
from optim_checkpoint._digest import digest
from optim_checkpoint._errors import UnsupportedStateError, shown
from optim_checkpoint._files import PlannedFile, ShardEntry, check_file_count, plan_file, split
from optim_checkpoint._json import dumps
from optim_checkpoint._peers import Answer
from optim_checkpoint._shard import Entry

Place = tuple[str, str, Offset | None]
Ranked = Sequence[Answer]


@dataclass
class Plan:
    """What a save by several processes will write, as one of them sees it.

    Attributes:
        files: The files of this process.
        copies: What this process holds of what another writes, by part.
        counts: How many files each part has in all.
        needed: How many bytes all files take.
        shards: For each part the sharded tensors with their whole shapes.
    """

    files: list[PlannedFile]
    copies: list[tuple[str, Entry]]
    counts: dict[str, int]
    needed: int
    shards: dict[str, dict[str, Shape]]


def describe(document: Document) -> Answer:
    """Return what one process tells the others about its part of a save."""
    sections: dict[str, str] = {}
    _fingerprint("", dict(document.sections), sections, 2)
    return {
        "sections": sections,
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
    """
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


def unread() -> memoryview:
    """Stand for the bytes of what another process holds."""
    raise AssertionError("this entry belongs to another process")


def _entries(answer: Answer, part: str) -> list[Entry]:
    rows = cast("dict[str, list[list[object]]]", answer["parts"]).get(part, [])
    entries: list[Entry] = []
    for name, dtype, shape, offset, whole in rows:
        dims = tuple(cast("list[int]", shape))
        if offset is None:
            entries.append(Entry(str(name), str(dtype), dims, unread))
        else:
            box = tuple(cast("list[int]", offset)), tuple(cast("list[int]", whole))
            entries.append(ShardEntry(str(name), str(dtype), dims, unread, *box))
    return entries


def place_of(part: str, entry: Entry) -> Place:
    """Return what two processes that hold the same tensor, or the same shard, agree on."""
    return part, entry.name, entry.offset if isinstance(entry, ShardEntry) else None


def make_plan(answers: Ranked, document: Document, rank: int, limit: int) -> Plan:
    """Decide who writes what to which file: a tensor that several hold, the first of them.

    Args:
        answers: What `describe` returned in each process.
        document: What this process holds.
        rank: Which process this is.
        limit: Greatest number of bytes of tensors in one file, unless one alone has more.

    Raises:
        UnsupportedStateError: If shards do not make up the whole.
    """
    plan = Plan([], [], {}, 0, {})
    kinds: dict[Place, tuple[str, Shape]] = {}
    owners: dict[Place, int] = {}
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
                        f"is {kinds[place]} in process {owners[place]}, {kind} in {number}",
                    )
                if owners.setdefault(place, number) == number:
                    mine.append(entry)
                elif number == rank:
                    plan.copies.append((part, entry))
            owned.append(mine)
        _check_grids(part, owned, plan)
        groups = [split(entries, limit) for entries in owned]
        total, number = sum(map(len, groups)), 0
        plan.counts[part] = total
        check_file_count(sum(plan.counts.values()), limit)
        for owner, listed in enumerate(groups):
            for entries in listed:
                file = plan_file(part, number, total, entries)
                plan.needed += file.layout.size
                plan.files += [file] * (owner == rank)
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
