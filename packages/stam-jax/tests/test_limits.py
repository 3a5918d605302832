"""The exact limit: without adaptation STAM is optax's AdamW."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import stam_jax

STEPS = 1000
RATE, B1, B2, EPS, DECAY = 1e-3, 0.9, 0.999, 1e-8, 0.01
SHAPES = {"w": (7, 5), "b": (5,), "s": ()}


def drive(optimizer, params, grads):
    """Take one step per gradient, the same gradients for every optimizer."""

    def step(carry, g):
        params, state = carry
        updates, state = optimizer.update(g, state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.jit(lambda p, g: jax.lax.scan(step, (p, optimizer.init(p)), g)[0])(params, grads)


def data(dtype):
    rng = np.random.default_rng(0)
    params = {k: jnp.asarray(rng.uniform(-1, 1, s), dtype) for k, s in SHAPES.items()}
    scales = np.exp(rng.uniform(-3, 3, STEPS))
    grads = {
        k: jnp.asarray(rng.standard_normal((STEPS, *s)) * scales.reshape(-1, *[1] * len(s)), dtype)
        for k, s in SHAPES.items()
    }
    return params, grads


@pytest.mark.parametrize(("double", "bound"), [(False, 1e-6), (True, 1e-13)])
@pytest.mark.parametrize("options", [{}, {"statistics": "corrected"}, {"stat_sample": 4}])
def test_without_adaptation_stam_is_adamw(double, bound, options):
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", double)
    try:
        params, grads = data(np.float64 if double else np.float32)
        ours = stam_jax.stam(RATE, B1, B2, EPS, DECAY, adapt_strength=0.0, **options)
        theirs = optax.adamw(RATE, B1, B2, EPS, weight_decay=DECAY)
        (p, state), (q, _) = drive(ours, params, grads), drive(theirs, params, grads)
        for name in SHAPES:
            np.testing.assert_allclose(p[name], q[name], rtol=0, atol=bound)
        assert state[0].s2.dtype == (np.float64 if double else np.float32)
    finally:
        jax.config.update("jax_enable_x64", before)


def test_with_adaptation_stam_is_not_adamw():
    params, grads = data(np.float32)
    p, _ = drive(stam_jax.stam(RATE), params, grads)[0], None
    q, _ = drive(optax.adamw(RATE, weight_decay=DECAY), params, grads)[0], None
    assert max(float(jnp.max(jnp.abs(p[k] - q[k]))) for k in SHAPES) > 1e-3


@pytest.mark.parametrize("make", [stam_jax.stam, stam_jax.stam_lite])
def test_the_parts_make_the_alias(make):
    parts = {stam_jax.stam: stam_jax.scale_by_stam, stam_jax.stam_lite: stam_jax.scale_by_stam_lite}
    params, grads = data(np.float32)
    chain = optax.chain(
        parts[make](), optax.add_decayed_weights(DECAY), optax.scale_by_learning_rate(RATE)
    )
    p, q = drive(make(RATE), params, grads)[0], drive(chain, params, grads)[0]
    for name in SHAPES:
        np.testing.assert_allclose(p[name], q[name], rtol=1e-6, atol=1e-7)


def test_the_first_updates_are_as_exact_as_float32():
    """At t = 1 the update is g/|g|; a correction by ``1 - b2**t`` is off by 7e-6 there."""
    optimizer = stam_jax.scale_by_stam(eps=1e-30)
    g = {"w": jnp.asarray([0.5, -2.0, 3e-3])}
    updates, _ = optimizer.update(g, optimizer.init(g))
    np.testing.assert_allclose(updates["w"], jnp.sign(g["w"]), rtol=5e-7)


@pytest.mark.parametrize("make", [stam_jax.stam, stam_jax.stam_lite])
def test_meta_gradients_at_zero_gradients(make):
    def loss(rate, **options):
        params = {"w": jnp.asarray([1.0, -2.0, 0.0]), "z": jnp.zeros(2)}
        optimizer = make(rate, **options)
        state = optimizer.init(params)
        for _ in range(3):
            updates, state = optimizer.update(params, state, params)
            params = optax.apply_updates(params, updates)
        return jnp.sum(params["w"] ** 2)

    by_autodiff = jax.grad(lambda rate: loss(rate, eps_root=1e-8))(0.1)
    by_differences = (loss(0.101, eps_root=1e-8) - loss(0.099, eps_root=1e-8)) / 0.002
    np.testing.assert_allclose(by_autodiff, by_differences, rtol=2e-2)
