"""The decoder on the user's own token file, in a size that a CPU trains."""

import dataclasses

import numpy as np
import pytest
from optim_bench import compare
from optim_bench.tasks import TaskError
from optim_bench.tasks.data import DamagedDataError
from optim_bench.tasks.decoder import decoder

TINY = {"parameters": 1e5, "symbols": 64, "context": 16, "batch": 4, "windows": 8}


@pytest.fixture
def tokens(tmp_path):
    path = tmp_path / "text.bin"
    (np.arange(6000, dtype="<u2") * 7 % 61).tofile(path)
    return path


def test_a_tiny_one_learns_and_is_compared(tokens, tmp_path):
    task = decoder(tokens, **TINY, steps=20)
    found = compare(
        task, ["sgd"], tier="smoke", seeds=2, output=tmp_path / "out", executor="inline", quiet=True
    )
    cell = found.results["cells"][-1]
    assert cell["label"] == "adamw"
    assert cell["parameters"] == 64 * (64 + 16 + 1) + 2 * (12 * 64**2 + 2 * 64)
    assert cell["fresh"]["mean"]["test_loss"] < 0.9 * np.log(64)


def test_its_size_is_part_of_its_key(tokens):
    small, large = (decoder(tokens, **{**TINY, "context": n}) for n in (16, 32))
    assert small.settings() != large.settings()
    assert small.settings() == decoder(tokens, **TINY).settings()
    assert decoder(tokens, **TINY, compile=True).settings() != small.settings()


def test_a_folder_with_both_files_is_read_as_it_is(tokens, tmp_path):
    for name in ("train.bin", "val.bin"):
        (tmp_path / name).write_bytes(tokens.read_bytes())
    by_folder = decoder(tmp_path, **TINY, steps=10)
    x, y = next(iter(by_folder.batches(0)))
    assert x.shape == y.shape == (4, 16)
    assert (x[:, 1:] == y[:, :-1]).all()
    other = next(iter(dataclasses.replace(by_folder).batches(1)))[0]
    assert not (x == other).all()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"symbols": 32},
            TaskError,
            "has the token 60, and symbols is 32; give symbols=61",
        ),
        ({"context": 400}, DamagedDataError, "the val split has 300 tokens; at least 402 are"),
        ({"parameters": 0}, TaskError, "parameters is 0; it has to be between 1 and 1e9"),
        ({"batch": 0}, TaskError, "batch is 0; it has to be at least 1"),
    ],
)
def test_what_cannot_be_trained_is_refused(tokens, changes, error, message):
    with pytest.raises(error, match=message):
        decoder(tokens, **{**TINY, **changes})
