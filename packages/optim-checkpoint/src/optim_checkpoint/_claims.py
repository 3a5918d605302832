# pyright: strict
"""Who writes what, decided by each process for itself and certified by a few numbers.

Each claims what its own layout says is its to write: of a shard that several hold the first of
them, as their sharding numbers them; of what is not sharded process 0; and its own generators. All
tell each other a digest of what must be equal everywhere, how many elements of shards they claim,
and how many files: some 200 bytes each, whatever the model. If the digests are equal and the claims
add up to the whole tensors, the claims are the plan. If not, `_plan` makes one from what each has.

Two claims that overlap as much as another leaves out add up, too. That shows when the sealed folder
is read back, before the commit.
"""

import dataclasses
from collections.abc import Sequence
from typing import cast

from optim_checkpoint._boxes import Shape
from optim_checkpoint._commit import Document
from optim_checkpoint._digest import digest
from optim_checkpoint._errors import CheckpointWriteError, shown
from optim_checkpoint._files import ShardEntry, base_of, check_file_count, plan_file, split
from optim_checkpoint._header import element_count
from optim_checkpoint._json import dumps
from optim_checkpoint._peers import Answer
from optim_checkpoint._plan import Plan, Ranked
from optim_checkpoint._shard import Entry


def claim(document: Document, rank: int, limit: int) -> tuple[Plan, Answer]:
    """Return what one process claims, numbered as if it were alone, and what it tells the others.

    Args:
        document: What this process holds.
        rank: Which process this is.
        limit: Greatest number of bytes of tensors in one file, unless one alone has more.
    """
    plan = Plan([], [], {}, 0, {})
    common: list[object] = []
    claimed = 0
    for part, entries in document.parts.items():
        mine: list[Entry] = []
        wholes = dict(document.shards.get(part, {}))
        own = set(document.own_keys) if part == "train" else set[str]()
        for entry in entries:
            if isinstance(entry, ShardEntry):
                wholes[entry.name] = entry.whole
                is_mine = entry.replica == 0
                claimed += element_count(entry.shape) * is_mine
            else:
                is_mine = rank == 0 or entry.name in own
                if entry.name not in own:
                    common.append([part, entry.name, entry.dtype, list(entry.shape)])
            if is_mine:
                mine.append(entry)
            else:
                plan.copies.append((part, entry))
        if wholes:
            plan.shards[part] = wholes
        groups = split(mine, limit)
        plan.counts[part] = len(groups)
        check_file_count(sum(plan.counts.values()), limit)
        plan.files += [plan_file(part, 0, 1, group) for group in groups]
    plan.needed = sum(file.layout.size for file in plan.files)
    shards = {part: sorted(wholes.items()) for part, wholes in plan.shards.items()}
    return plan, {
        "step": document.step,
        "max_shard_size": limit,
        "common": digest(dumps([dict(document.sections), common, shards])),
        "claimed": claimed,
        "whole": sum(map(element_count, _shapes(plan))),
        "counts": plan.counts,
        "needed": plan.needed,
    }


def _shapes(plan: Plan) -> Sequence[Shape]:
    return [shape for wholes in plan.shards.values() for shape in wholes.values()]


def settle(plan: Plan, answers: Ranked, rank: int, limit: int) -> Plan | None:
    """Return the plan that the claims of all make up, or None where they do not.

    Args:
        plan: The claim of this process.
        answers: What each told the others.
        rank: Which process this is.
        limit: As in `claim`.

    Raises:
        CheckpointWriteError: If the processes were not called alike.
        UnsupportedStateError: If there would be too many files.
    """
    for what in ("step", "max_shard_size"):
        values = [answer[what] for answer in answers]
        if len(set(map(str, values))) > 1:
            raise CheckpointWriteError(f"the processes save with different {what}: {shown(values)}")
    claimed = sum(cast("int", answer["claimed"]) for answer in answers)
    if len({answer["common"] for answer in answers}) > 1 or claimed != answers[0]["whole"]:
        return None
    counts = [cast("dict[str, int]", answer["counts"]) for answer in answers]
    totals = {part: sum(each.get(part, 0) for each in counts) for part in plan.counts}
    check_file_count(sum(totals.values()), limit)
    before = {part: sum(each.get(part, 0) for each in counts[:rank]) for part in plan.counts}
    files = list(plan.files)
    for i, file in enumerate(files):
        base = base_of(file.part, before[file.part], totals[file.part])
        before[file.part] += 1
        files[i] = dataclasses.replace(file, base=base)
    needed = sum(cast("int", answer["needed"]) for answer in answers)
    return dataclasses.replace(plan, files=files, counts=totals, needed=needed)
