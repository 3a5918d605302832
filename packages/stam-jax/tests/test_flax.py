"""Flax Linen's and Flax NNX's own ways of training and of sharding the state."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import stam_jax
from flax import nnx

MAKERS = {"stam": stam_jax.stam, "stam_lite": stam_jax.stam_lite}
X = jax.random.normal(jax.random.key(1), (64, 4))
Y = jnp.sin(X.sum(1, keepdims=True))


class Net(nnx.Module):
    def __init__(self):
        self.hidden = nnx.Linear(4, 8, rngs=nnx.Rngs(0))
        self.head = nnx.Linear(8, 1, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.head(nnx.tanh(self.hidden(x)))


def loss(model):
    return jnp.mean((model(X) - Y) ** 2)


@nnx.jit
def nnx_step(model, optimizer):
    value, grads = nnx.value_and_grad(loss)(model)
    optimizer.update(model, grads)
    return value


def train_nnx(make, steps=30):
    model = Net()
    optimizer = nnx.Optimizer(model, make(0.02), wrt=nnx.Param)
    losses = [float(nnx_step(model, optimizer)) for _ in range(steps)]
    return model, optimizer, losses


def train_plain(make, steps=30):
    """The same training with optax alone, on the module's arrays in a plain dict."""
    graph, variables = nnx.split(Net())
    params = nnx.to_pure_dict(variables)
    optimizer = make(0.02)
    state = optimizer.init(params)

    def plain_loss(params):
        nnx.replace_by_pure_dict(variables, params)
        return loss(nnx.merge(graph, variables))

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(plain_loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return params, state


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_nnx_optimizer_trains_as_plain_optax_does(make):
    model, optimizer, losses = train_nnx(make)
    assert losses[-1] < 0.5 * losses[0]
    params, state = train_plain(make)
    mine = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), mine, params)
    ours = stam_jax.diagnostics(optimizer.opt_state, nnx.state(model, nnx.Param))
    theirs = stam_jax.diagnostics(state, params)
    assert list(ours) == [f"{name}/value" for name in theirs]
    assert list(theirs) == ["head/bias", "head/kernel", "hidden/bias", "hidden/kernel"]
    for name, leaf in theirs.items():
        np.testing.assert_allclose(ours[f"{name}/value"], leaf, rtol=2e-4)
        assert 0.7 < float(leaf.beta1) < 0.9


def test_diagnostics_of_an_nnx_optimizer_inside_jit():
    model, optimizer, _ = train_nnx(stam_jax.stam, steps=1)

    @nnx.jit
    def read(model, optimizer):
        return stam_jax.diagnostics(optimizer.opt_state, nnx.state(model, nnx.Param))

    outside = stam_jax.diagnostics(optimizer.opt_state, nnx.state(model, nnx.Param))
    inside = read(model, optimizer)
    assert inside["head/kernel/value"].z.shape == ()
    for name, leaf in outside.items():
        np.testing.assert_allclose(inside[name], leaf, rtol=1e-6)


@pytest.fixture(scope="module")
def on_eight_devices(selected_values):
    """The report of run_flax_sharded.py, which needs a process of its own."""
    script = Path(__file__).with_name("run_flax_sharded.py")
    kinds = selected_values("test_sharding_metadata_reaches_the_state", "kind")
    result = subprocess.run(
        [sys.executable, str(script), *kinds], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return json.loads(result.stdout.splitlines()[-1])


# Flax sees trees and names, of which one optimizer has what the other has.
@pytest.mark.parametrize("kind", ["stam", pytest.param("stam_lite", marks=pytest.mark.slow)])
@pytest.mark.parametrize("flow", ["linen", "nnx_optimizer"])
def test_sharding_metadata_reaches_the_state(on_eight_devices, flow, kind):
    difference = on_eight_devices[f"{flow}-{kind}"]
    assert isinstance(difference, float), difference
    assert difference <= 2e-6
