"""What a process holds of a dimension, against torch's own way of cutting tensors."""

import itertools

import optim_checkpoint as oc
import pytest
import torch
from optim_checkpoint.torch._dtensor import shard_runs


def indices(runs):
    return [i for start, stop in runs for i in range(start, stop)]


def test_one_round_cuts_as_chunk_does():
    for length in range(12):
        for parts in range(1, 6):
            chunks = torch.arange(length).chunk(parts) if length else ()
            for index in range(parts):
                expected = chunks[index].tolist() if index < len(chunks) else []
                assert indices(shard_runs([(0, length)], parts, index, 1, "t")) == expected


def test_several_rounds_deal_the_pieces_out_in_turn():
    for parts in (1, 2, 3):
        for rounds in (2, 4):
            pieces = torch.arange(3 * parts * rounds).chunk(parts * rounds)
            for index in range(parts):
                expected = torch.cat(pieces[index::parts]).tolist()
                found = shard_runs([(0, 3 * parts * rounds)], parts, index, rounds, "t")
                assert indices(found) == expected
                # Neighbouring runs are one.
                assert all(a[1] != b[0] for a, b in itertools.pairwise(found))


def test_a_second_cut_goes_through_the_runs_of_the_first():
    first = shard_runs([(0, 16)], 2, 1, 2, "t")
    assert first == [(4, 8), (12, 16)]
    assert shard_runs(first, 2, 0, 1, "t") == [(4, 8)]
    assert shard_runs(first, 4, 1, 1, "t") == [(6, 8)]
    assert shard_runs([(0, 3), (5, 8)], 2, 0, 1, "t") == [(0, 3)]
    assert shard_runs([(0, 2), (5, 9)], 2, 1, 1, "t") == [(6, 9)]


def test_rounds_that_do_not_divide_evenly_are_refused_by_name():
    message = "^w: 7 entries over 2 processes in 2 rounds do not divide evenly$"
    with pytest.raises(oc.UnsupportedStateError, match=message):
        shard_runs([(0, 7)], 2, 0, 2, "w")
