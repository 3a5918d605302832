"""Equinox models: the tree that is trained holds None for everything that is not an array."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stam_jax

with warnings.catch_warnings():
    # Equinox reads names that some versions of JAX have deprecated, when it is imported.
    warnings.simplefilter("ignore", DeprecationWarning)
    import equinox as eqx

MAKERS = {"stam": stam_jax.stam, "stam_lite": stam_jax.stam_lite}
X = jax.random.normal(jax.random.key(1), (64, 4))
Y = jnp.sin(X.sum(1, keepdims=True))


def build():
    return eqx.nn.MLP(4, 1, width_size=8, depth=1, activation=jnp.tanh, key=jax.random.key(0))


def loss(model):
    return jnp.mean((jax.vmap(model)(X) - Y) ** 2)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_filtered_model_trains(make):
    model = build()
    optimizer = make(0.02)
    state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))
    traces = []

    @eqx.filter_jit
    def step(model, state):
        traces.append(1)
        grads = eqx.filter_grad(loss)(model)
        updates, state = optimizer.update(grads, state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state

    before = loss(model)
    for _ in range(30):
        model, state = step(model, state)
    assert float(loss(model)) < 0.5 * float(before)
    assert len(traces) == 1
    assert model.activation is build().activation
    read = stam_jax.diagnostics(state, eqx.filter(model, eqx.is_inexact_array))
    assert list(read) == [f"layers/{i}/{name}" for i in (0, 1) for name in ("weight", "bias")]
    assert all(0.7 < float(leaf.beta1) < 0.9 for leaf in read.values())


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_frozen_layer_is_none_and_stays(make):
    """eqx.partition leaves None where a layer is frozen; the rest moves as if it were alone."""
    model = build()
    spec = jax.tree.map(lambda _: False, model)
    spec = eqx.tree_at(lambda m: m.layers[1], spec, jax.tree.map(eqx.is_array, model.layers[1]))
    trained, frozen = eqx.partition(model, spec)
    assert trained.layers[0].weight is None
    optimizer = make(0.02)
    grads = eqx.filter_grad(lambda t: loss(eqx.combine(t, frozen)))(trained)
    state = optimizer.init(trained)
    for scale in (1.0, -0.5, 2.0):
        scaled = jax.tree.map(lambda g, scale=scale: scale * g, grads)
        updates, state = optimizer.update(scaled, state, trained)
    moved = eqx.combine(eqx.apply_updates(trained, updates), frozen)
    np.testing.assert_array_equal(moved.layers[0].weight, model.layers[0].weight)
    alone = {"w": trained.layers[1].weight, "b": trained.layers[1].bias}
    gradient = {"w": grads.layers[1].weight, "b": grads.layers[1].bias}
    alone_state = optimizer.init(alone)
    for scale in (1.0, -0.5, 2.0):
        scaled = jax.tree.map(lambda g, scale=scale: scale * g, gradient)
        expected, alone_state = optimizer.update(scaled, alone_state, alone)
    np.testing.assert_allclose(updates.layers[1].weight, expected["w"], rtol=1e-6)
    np.testing.assert_allclose(updates.layers[1].bias, expected["b"], rtol=1e-6)
    assert float(jnp.abs(updates.layers[1].weight).max()) > 0
    assert list(stam_jax.diagnostics(state, trained)) == ["layers/1/weight", "layers/1/bias"]


def test_a_model_of_roles_is_a_partition_and_is_not_called():
    params = eqx.filter(build(), eqx.is_inexact_array)
    roles = jax.tree.map(lambda _: "sign", params)
    optimizer = stam_jax.stac(0.1, partition=roles)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    moved = jax.tree.map(lambda u, p: bool(jnp.allclose(u, -0.1 * jnp.sign(p))), updates, params)
    assert all(jax.tree.leaves(moved))


def test_stac_trains_a_model_and_does_not_call_it():
    model = build()
    optimizer = stam_jax.stac(0.02, sign_state_dtype="int8", weight_decay=0.01)
    state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model, state):
        grads = eqx.filter_grad(loss)(model)
        updates, state = optimizer.update(grads, state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state

    before = loss(model)
    for _ in range(60):
        model, state = step(model, state)
    assert float(loss(model)) < 0.5 * float(before)
