"""Who writes what without asking: what is settled, what is not, and what many processes pay."""

import json
import time

import pytest
from optim_checkpoint._claims import claim, settle
from optim_checkpoint._commit import Document
from optim_checkpoint._files import ShardEntry
from optim_checkpoint._plan import describe, make_plan
from optim_checkpoint._shard import Entry

LIMIT = 10**9


def nothing():
    raise AssertionError("a plan reads no data")


def document(rank, world, tensors=3, rows=2, **changes):
    """Return what a rank has: rows of some tensors, scalars that all have, and one of its own."""
    entries = [
        ShardEntry(f"t{i}", "F32", (rows, 8), nothing, (rows * rank, 0), (rows * world, 8))
        for i in range(tensors)
    ]
    entries += [Entry(f"step{i}", "F32", (), nothing) for i in range(tensors)]
    own = Entry(f"rank{rank}.rng", "U8", (9,), nothing)
    parts = {"model": [], "optim": entries, "train": [own]}
    sections = {"optimizer": {"params": {f"t{i}": ["F32", [rows * world, 8]] for i in range(9)}}}
    fields = {"step": 1, "framework": {}, "sections": sections, "parts": parts}
    return Document(**{**fields, "own_keys": {own.name}, **changes})


def settled(documents):
    """Return the plan of each rank, or None."""
    claims = [claim(each, rank, LIMIT) for rank, each in enumerate(documents)]
    answers = [json.loads(json.dumps(answer)) for _, answer in claims]
    return [settle(plan, answers, rank, LIMIT) for rank, (plan, _) in enumerate(claims)]


def content(files):
    return [(f.part, f.base, [e.name for e in f.layout.entries], f.layout.head) for f in files]


def test_claims_that_make_up_the_whole_are_the_plan_that_all_would_make():
    documents = [document(rank, 3) for rank in range(3)]
    described = [json.loads(json.dumps(describe(each))) for each in documents]
    for rank, plan in enumerate(settled(documents)):
        full = make_plan(described, documents[rank], rank, LIMIT)
        assert content(plan.files) == content(full.files)
        assert [e.name for _, e in plan.copies] == [e.name for _, e in full.copies]
        assert (plan.counts, plan.shards, plan.needed) == (full.counts, full.shards, full.needed)


def test_of_replicas_the_first_writes():
    """As of two meshes of two: rows on one dimension, replicas on the other."""
    documents = []
    for rank in range(4):
        replica, row = divmod(rank, 2)
        shard = ShardEntry("t", "F32", (2, 8), nothing, (2 * row, 0), (4, 8), replica)
        documents.append(document(rank, 4, parts={"model": [shard]}))
    plans = settled(documents)
    assert [len(plan.files) for plan in plans] == [1, 1, 0, 0]
    assert [len(plan.copies) for plan in plans] == [0, 0, 1, 1]
    assert plans[1].files[0].base == "model-00002-of-00002.safetensors"


UNSETTLED = {
    "two that take themselves for the first": lambda shard: [shard(0, 4), shard(0, 4)],
    "a hole": lambda shard: [shard(0, 2), shard(3, 1)],
    "another whole": lambda shard: [shard(0, 2), shard(2, 2, (5, 8))],
    "a tensor that only one has": lambda shard: [
        [*shard(0, 2), Entry("x", "F32", (), nothing)],
        shard(2, 2),
    ],
}


@pytest.mark.parametrize("case", UNSETTLED)
def test_claims_that_do_not_are_no_plan(case):
    def shard(row, rows, whole=(4, 8)):
        return [ShardEntry("t", "F32", (rows, 8), nothing, (row, 0), whole)]

    parts = UNSETTLED[case](shard)
    plans = settled([document(i, 2, parts={"model": entries}) for i, entries in enumerate(parts)])
    assert plans == [None, None]


def plan_at(world, tensors):
    """Return the bytes that each of `world` processes hears, and the seconds that it plans."""
    ranks = (0, world // 2, world - 1)
    start = time.process_time()
    claims = {rank: claim(document(rank, world, tensors), rank, LIMIT) for rank in ranks}
    # All claim as much here, and each of them says it in a message of its own.
    heard = [json.dumps(claims[world - 1][1]).encode() for _ in range(world)]
    for rank in ranks:
        answers = [json.loads(message) for message in heard]
        answers[0] = claims[0][1]
        plan = settle(claims[rank][0], answers, rank, LIMIT)
        assert plan is not None
        assert plan.counts == {"model": 0, "optim": world, "train": world}
        assert plan.files[0].base == f"optim-{rank + 1:05d}-of-{world:05d}.safetensors"
    return sum(map(len, heard)), (time.process_time() - start) / len(ranks)


def test_a_plan_of_2800_processes_is_linear_and_takes_less_than_ten_seconds():
    small, _ = plan_at(700, 8)
    large, seconds = plan_at(2800, 8)
    assert large <= 4.1 * small
    # However many tensors there are, it is the same few numbers.
    assert plan_at(700, 200)[0] <= 1.05 * small
    assert large <= 2800 * 256
    assert seconds < 10
