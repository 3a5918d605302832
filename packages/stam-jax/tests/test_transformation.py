"""What optax users do with an optimizer, beyond what optax's own suites check."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import stam_jax

BOTH = pytest.mark.parametrize("make", [stam_jax.stam, stam_jax.stam_lite])
PARAMS = {"b": jnp.asarray([0.3, -0.2]), "w": jnp.asarray([[1.0, -2.0], [0.5, 4.0]])}


def gradients(t):
    return jax.tree.map(lambda p: jnp.sin(p * (t + 1)), PARAMS)


def drive(optimizer, n, *, jit=True, params=PARAMS):
    state = optimizer.init(params)
    update = jax.jit(optimizer.update) if jit else optimizer.update
    for t in range(n):
        updates, state = update(gradients(t), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def assert_trees_close(a, b, **tolerance):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, **tolerance)


@BOTH
def test_eager_equals_jit(make):
    assert_trees_close(drive(make(), 7), drive(make(), 7, jit=False), rtol=2e-6, atol=1e-7)


@BOTH
def test_fresh_state_can_be_donated(make):
    """Every leaf of a fresh state has a buffer of its own."""
    optimizer = make()
    step = jax.jit(
        lambda state, params: optimizer.update(PARAMS, state, params), donate_argnums=(0,)
    )
    state = optimizer.init(PARAMS)
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
    assert len(set(pointers)) == len(pointers)
    _, after = step(state, PARAMS)
    assert_trees_close(
        after, optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS)[1], rtol=1e-6
    )


@BOTH
def test_vmap_over_models(make):
    optimizer = make()
    stacked = jax.tree.map(lambda p: jnp.stack([p, 2 * p, -p]), PARAMS)
    state = jax.vmap(optimizer.init)(stacked)
    for t in range(3):
        grads = jax.tree.map(lambda p, t=t: jnp.sin(p * (t + 1)), stacked)
        updates, state = jax.jit(jax.vmap(optimizer.update))(grads, state, stacked)
        stacked = optax.apply_updates(stacked, updates)
    second = jax.tree.map(lambda p: 2 * p, PARAMS)
    alone = optimizer.init(second)
    for t in range(3):
        grads = jax.tree.map(lambda p, t=t: jnp.sin(p * (t + 1)), second)
        updates, alone = optimizer.update(grads, alone, second)
        second = optax.apply_updates(second, updates)
    assert_trees_close(jax.tree.map(lambda x: x[1], (stacked, state)), (second, alone), rtol=2e-6)


def test_vmap_over_hyperparameters():
    def first_step(b1, a):
        optimizer = stam_jax.stam(1e-2, b1, adapt_strength=a)
        return optimizer.update(gradients(0), optimizer.init(PARAMS), PARAMS)[1][0].beta1

    table = jax.vmap(first_step)(jnp.asarray([0.9, 0.8, 0.9]), jnp.asarray([0.2, 0.2, 0.0]))
    np.testing.assert_allclose(table[1] / table[0], 0.8 / 0.9, rtol=1e-6)
    np.testing.assert_allclose(table[2], 0.9, rtol=1e-6)


@BOTH
def test_multi_steps_equals_the_mean_gradient(make):
    accumulated = optax.MultiSteps(make(0.1), every_k_schedule=2)
    state, params = accumulated.init(PARAMS), PARAMS
    for t in range(4):
        updates, state = jax.jit(accumulated.update)(gradients(t), state, params)
        params = optax.apply_updates(params, updates)
    plain = make(0.1)
    plain_state, expected = plain.init(PARAMS), PARAMS
    for t in (0, 2):
        mean = jax.tree.map(lambda a, b: (a + b) / 2, gradients(t), gradients(t + 1))
        updates, plain_state = plain.update(mean, plain_state, expected)
        expected = optax.apply_updates(expected, updates)
    assert_trees_close(params, expected, rtol=2e-6, atol=1e-7)


@BOTH
def test_injected_hyperparameters_take_effect_without_compiling(make):
    optimizer = optax.inject_hyperparams(make)(learning_rate=0.1, b1_base=0.9)
    traces = []

    @jax.jit
    def step(grads, state, params):
        traces.append(1)
        return optimizer.update(grads, state, params)

    state = optimizer.init(PARAMS)
    first, state = step(gradients(0), state, PARAMS)
    state.hyperparams["learning_rate"] = jnp.asarray(0.0, jnp.float32)
    second, state = step(gradients(0), state, PARAMS)
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(first)) > 0
    assert_trees_close(second, jax.tree.map(jnp.zeros_like, second), atol=0)
    assert len(traces) == 1


@BOTH
def test_injecting_into_16_bit_parameters_says_what_to_do(make):
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    with pytest.raises(
        TypeError, match=r"b1_base was given as a bfloat16 array.*hyperparam_dtype="
    ):
        optax.inject_hyperparams(make)(learning_rate=0.1).init(params)
    optimizer = optax.inject_hyperparams(make, hyperparam_dtype=jnp.float32)(learning_rate=0.1)
    state, plain = optimizer.init(params), make(0.1)
    updates, _ = jax.jit(optimizer.update)(params, state, params)
    expected, _ = plain.update(params, plain.init(params), params)
    as_float = [jax.tree.map(lambda x: x.astype(float), x) for x in (updates, expected)]
    assert_trees_close(*as_float, rtol=0.01)


@BOTH
def test_a_sample_size_cannot_be_injected_and_says_so(make):
    inject = optax.inject_hyperparams(make)(learning_rate=0.1, stat_sample=2)
    with pytest.raises(
        TypeError, match=r"stat_sample must be a Python int.*static_args=\('stat_sa"
    ):
        inject.init(PARAMS)
    optimizer = optax.inject_hyperparams(make, static_args=("stat_sample",))(0.1, stat_sample=2)
    drive(optimizer, 2)


@BOTH
def test_counts_saturate(make):
    last = np.iinfo(np.int32).max
    optimizer = make(lambda count: 1e-3, weight_decay=lambda count: 0.1)
    full = jax.tree.map(
        lambda x: jnp.full_like(x, last) if x.dtype == jnp.int32 else x, optimizer.init(PARAMS)
    )
    updates, state = jax.jit(optimizer.update)(PARAMS, full, PARAMS)
    counts = [x for x in jax.tree.leaves(state) if x.dtype == jnp.int32]
    assert len(counts) == 3
    assert {int(count) for count in counts} == {last}
    assert all(bool(jnp.isfinite(u).all()) for u in jax.tree.leaves(updates))


@BOTH
def test_the_second_call_and_a_schedule_compile_nothing(make, caplog):
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1e-2, 3, 10)
    optimizer = make(schedule, weight_decay=schedule, adapt_strength=lambda c: 0.05 * (c % 3))
    state, params = optimizer.init(PARAMS), PARAMS
    step = jax.jit(lambda g, s, p: optimizer.update(g, s, p))
    _, state = step(gradients(0), state, params)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        for _ in range(8):
            _, state = step(gradients(0), state, params)
    assert [r.message for r in caplog.records if "ompil" in r.message] == []
    assert step._cache_size() == 1


@BOTH
@pytest.mark.parametrize("name", ["learning_rate", "weight_decay", "adapt_strength"])
def test_a_schedule_counts_from_zero(make, name):
    """A schedule that is constant but for its first value differs in the first step alone."""
    value = {"learning_rate": 0.1, "weight_decay": 0.3, "adapt_strength": 0.4}[name]
    other = {"learning_rate": 0.2, "weight_decay": 0.6, "adapt_strength": 0.1}[name]
    scheduled = make(**{name: lambda count: jnp.where(count == 0, other, value)})
    constant, first = make(**{name: value}), make(**{name: other})
    updates, state = scheduled.update(gradients(0), scheduled.init(PARAMS), PARAMS)
    expected, _ = first.update(gradients(0), first.init(PARAMS), PARAMS)
    assert_trees_close(updates, expected, rtol=2e-6)
    wrong, mid = constant.update(gradients(0), constant.init(PARAMS), PARAMS)
    if name != "adapt_strength":
        updates, _ = scheduled.update(gradients(1), state, PARAMS)
        expected, _ = constant.update(gradients(1), mid, PARAMS)
        assert_trees_close(updates, expected, rtol=2e-6)
    assert float(jnp.abs(wrong["w"] - first.update(gradients(0), mid, PARAMS)[0]["w"]).max()) > 0


@BOTH
def test_unknown_keyword_arguments_are_swallowed(make):
    optimizer = make()
    updates, _ = optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS, value=1.0, loss="x")
    expected, _ = optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS)
    assert_trees_close(updates, expected, rtol=0)


@BOTH
def test_params_are_needed_by_decay_alone(make):
    optimizer = make(weight_decay=0.0)
    updates, _ = optimizer.update(PARAMS, optimizer.init(PARAMS))
    expected, _ = optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS)
    assert_trees_close(updates, expected, rtol=0)


@BOTH
def test_state_is_small(make):
    """Two buffers per leaf for STAM, one for STAMLite; six arrays more, however many leaves."""
    params = {f"w{i}": jnp.ones(3) for i in range(50)}
    arrays = len(jax.tree.leaves(make().init(params)))
    assert arrays == {stam_jax.stam: 106, stam_jax.stam_lite: 56}[make]
