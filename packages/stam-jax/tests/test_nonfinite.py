"""The three policies, and what a bad step may not do to the state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import stam_jax

BOTH = pytest.mark.parametrize("make", [stam_jax.stam, stam_jax.stam_lite])
BAD = pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
PARAMS = {"b": jnp.asarray([0.3, -0.2]), "w": jnp.asarray([[1.0, -2.0], [0.5, 4.0]])}
GOOD = jax.tree.map(jnp.sin, PARAMS)


def with_bad_entry(bad):
    return {**GOOD, "w": GOOD["w"].at[0, 1].set(bad)}


def equal(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y, equal_nan=True) for x, y in pairs)


@BOTH
@BAD
def test_skip_leaves_out_the_whole_step(make, bad):
    schedule = optax.linear_schedule(0.1, 0.2, 10)
    optimizer = make(schedule, weight_decay=schedule, nonfinite="skip")
    _, state = optimizer.update(GOOD, optimizer.init(PARAMS), PARAMS)
    updates, after = jax.jit(optimizer.update)(with_bad_entry(bad), state, PARAMS)
    assert equal(updates, jax.tree.map(jnp.zeros_like, PARAMS))
    assert equal(after, state)
    moved, _ = optimizer.update(GOOD, after, PARAMS)
    assert not equal(moved, updates)


@pytest.mark.parametrize("make", [stam_jax.stam, stam_jax.stam_lite, stam_jax.stac])
def test_finite_gradients_whose_sum_is_not_are_no_bad_step(make):
    optimizer = make(0.1, nonfinite="skip")
    grads = jax.tree.map(lambda g: jnp.full_like(g, 3e38), GOOD)
    _, state = jax.jit(optimizer.update)(grads, optimizer.init(PARAMS), PARAMS)
    counts = [x for x in jax.tree.leaves(state) if x.dtype == jnp.int32]
    assert counts
    assert all(count == 1 for count in counts)


@BOTH
@BAD
def test_zero_counts_a_bad_entry_as_zero(make, bad):
    optimizer, plain = make(nonfinite="zero"), make()
    result = optimizer.update(with_bad_entry(bad), optimizer.init(PARAMS), PARAMS)
    expected = plain.update(with_bad_entry(0.0), plain.init(PARAMS), PARAMS)
    assert equal(result, expected)


@BOTH
@BAD
def test_propagate_loses_the_entry_and_keeps_the_statistics(make, bad):
    optimizer = make()
    _, state = optimizer.update(GOOD, optimizer.init(PARAMS), PARAMS)
    updates, after = jax.jit(optimizer.update)(with_bad_entry(bad), state, PARAMS)
    finite = np.isfinite(np.asarray(updates["w"]))
    assert finite.tolist() == [[True, False], [True, True]]
    for name in ("s2", "tau", "e1", "e2"):
        if hasattr(state[0], name):
            held, old = getattr(after[0], name), getattr(state[0], name)
            assert held[1] == old[1]
            assert held[0] != old[0]
    assert np.isfinite(after[0].beta1).all()
    assert np.isfinite(after[0].b1_prod).all()


@BOTH
def test_policies_change_no_state_structure(make):
    structures = {
        jax.tree.structure(make(nonfinite=policy).init(PARAMS))
        for policy in ("propagate", "zero", "skip")
    }
    assert len(structures) == 1


@BOTH
@BAD
def test_parity_counts_a_bad_entry_as_zero(make, bad):
    optimizer = make(parity="stam-optimizer-0.1.0")
    result = optimizer.update(with_bad_entry(bad), optimizer.init(PARAMS), PARAMS)
    expected = optimizer.update(with_bad_entry(0.0), optimizer.init(PARAMS), PARAMS)
    assert equal(result, expected)


@BOTH
def test_a_chain_of_bad_steps_recovers(make):
    """After bad steps under "skip" the run is the one without them, bit for bit."""
    optimizer = make(0.05, nonfinite="skip")

    def drive(gradients):
        params, state = PARAMS, optimizer.init(PARAMS)
        for g in gradients:
            updates, state = jax.jit(optimizer.update)(g, state, params)
            params = optax.apply_updates(params, updates)
        return params, state

    bad = with_bad_entry(jnp.nan)
    assert equal(drive([GOOD, bad, bad, GOOD, bad]), drive([GOOD, GOOD]))
