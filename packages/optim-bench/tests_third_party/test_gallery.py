"""The examples train on what other packages bring, and other libraries' modules come back whole."""

from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from optim_bench import JaxTask, compare
from optim_bench.executors.train import train
from optim_bench.records import RunSpec
from optim_bench.tasks import enter_task

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
OTHERS = {"equinox_mlp": ["stam"], "tabular": ["tabular.py:mine"], "small_cnn": ["muon"]}
# Of their sources: the first import of a package compiles it, and says what its syntax lacks.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::SyntaxWarning")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_gives_a_verdict(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(path.parent)
    found = compare(
        f"{path.name}:task", OTHERS.get(path.stem, ["stac"]), tier="smoke", seeds=1,
        executor="inline", quiet=True,
    )  # fmt: skip
    (verdict,) = found.verdicts
    assert verdict.task == path.stem
    assert verdict.seeds == 1
    # An AdamW run that learned something: the loss of a coin, or the mean as the answer, is more.
    (baseline,) = [row for row in found.records() if row["optimizer"] == "adamw"]
    assert 0 < baseline["mean"] < {"tabular": 0.9}.get(path.stem, 0.69)


def test_every_kind_of_example_is_there_and_short():
    assert [path.stem for path in EXAMPLES] == [
        "equinox_mlp", "hugging_face", "small_cnn", "tabular",
    ]  # fmt: skip
    for path in EXAMPLES:
        lines = [line for line in path.read_text().splitlines() if line.strip()]
        assert len(lines) < 40, path


X = np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32)
Y = (X @ np.array([1.0, -2.0, 0.5, 0.0], np.float32) + 0.1)[:, None]


class Equinox(eqx.Module):
    layer: eqx.nn.Linear
    negate: object
    count: jax.Array

    def __init__(self, key):
        self.layer, self.negate = eqx.nn.Linear(4, 1, key=key), jnp.negative
        self.count = jnp.arange(3)

    def __call__(self, x):
        return self.negate(self.negate(jax.vmap(self.layer)(x)))


class Flax(nnx.Module):
    def __init__(self, key):
        rngs = nnx.Rngs(key)
        self.norm = nnx.BatchNorm(4, use_running_average=True, rngs=rngs)
        self.layer = nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, x):
        return self.layer(self.norm(x))


@pytest.mark.parametrize(("module", "entries"), [(Equinox, 5), (Flax, 5 + 8)])
def test_a_module_is_trained_without_what_is_no_parameter(module, entries):
    def batches(seed):
        rng = np.random.default_rng(seed)
        while True:
            rows = rng.integers(0, 64, 8)
            yield X[rows], Y[rows]

    def loss(model, batch, key):
        return jnp.mean((model(batch[0]) - batch[1]) ** 2)

    def evaluate(model, split):
        assert isinstance(model, module)
        return {"loss": float(loss(model, (X, Y), None))}

    task = JaxTask(module, batches, loss, evaluate, steps=40, name="lines")
    rate = {"learning_rate": 0.1}
    reference = enter_task(task)
    record = train(RunSpec("lines", 0, "jax", "adamw", rate, 0, 40, "cosine", task=reference))
    assert record.error is None
    # The statistics of a norm, integers and functions are no parameters.
    assert record.parameters == entries
    assert record.metrics["val_loss"] < 0.5 * record.curve["val_loss"][0]
