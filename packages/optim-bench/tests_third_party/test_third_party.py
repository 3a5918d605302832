"""The entries that need another distribution: they train, and keep the state they say."""

import pytest
from optim_bench.executors.train import train
from optim_bench.optimizers import OPTIONAL
from optim_bench.protocol.catalog import absent_optimizers, all_optimizers
from optim_bench.records import RunSpec

pytestmark = [
    # Raised while torchao is imported and compiles its step; nothing of it is ours to mend.
    pytest.mark.filterwarnings("ignore:invalid escape sequence"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
# digits-noisy is an MLP 64-128-128-10: 26,122 entries, 24,576 of them in its two hidden matrices.
ENTRIES, HIDDEN, TENSORS = 26_122, 24_576, 6
BLOCK = 256
STATE_BYTES = {
    # One byte per entry of both moments, a float32 scale per block and a table of 256 float32 for
    # each moment of the two large tensors; float32 for the rest; a step per tensor.
    "torch/adamw_8bit": 2 * (HIDDEN + HIDDEN // BLOCK * 4 + 2 * 256 * 4)
    + 8 * (ENTRIES - HIDDEN)
    + 4 * TENSORS,
}


def spec(name: str, rate: float = 1e-3, **hyperparameters: object) -> RunSpec:
    given = {"learning_rate": rate, **hyperparameters}
    return RunSpec("digits-noisy", 1, "torch", name, given, 0, 100, "cosine")


def test_all_of_them_are_entered():
    assert absent_optimizers() == []
    assert OPTIONAL.keys() <= all_optimizers().keys()


@pytest.mark.parametrize("key", OPTIONAL)
def test_they_train(key):
    record = train(spec(OPTIONAL[key].name))
    assert record.error is None
    assert record.status == "ok"
    assert record.metrics["val_loss"] < record.curve["val_loss"][0]
    if key in STATE_BYTES:
        assert record.state_bytes == STATE_BYTES[key]
    # A state that is counted and smaller than AdamW's two moments.
    assert 0 < record.state_bytes < 8 * ENTRIES


@pytest.mark.parametrize("name", ["adamw_8bit", "stac_published"])
def test_the_learning_rate_reaches_every_step(name):
    losses = {rate: train(spec(name, rate)).metrics["train_loss"] for rate in (1e-9, 1e-3)}
    assert losses[1e-3] < 0.9 * losses[1e-9]
