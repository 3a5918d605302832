"""Stochastic rounding of bfloat16 parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import stam_jax

KEY = jax.random.key(7)


def test_the_mean_is_kept_and_only_neighbours_are_hit():
    rng = np.random.default_rng(0)
    values = jnp.asarray(rng.standard_normal(50) * 10.0 ** rng.integers(-6, 6, 50), jnp.float32)
    rounded = stam_jax.round_stochastically(jnp.tile(values, (20_000, 1)), KEY)
    wide = np.asarray(rounded, np.float64)
    unit = 2.0 ** (np.floor(np.log2(np.abs(values))) - 7)
    assert (np.abs(wide - np.asarray(values)) < unit).all()
    # Five standard errors of a mean of 20,000 draws between two neighbours.
    assert (np.abs(wide.mean(0) - values) < 5 * unit / 2 / np.sqrt(20_000)).all()


def test_what_bfloat16_can_hold_is_left_alone():
    exact = jnp.asarray([0.0, -0.0, 1.0, -3.5, 2.0**100, jnp.inf, -jnp.inf, jnp.nan], jnp.float32)
    rounded = stam_jax.round_stochastically(exact, KEY)
    np.testing.assert_array_equal(np.asarray(rounded, np.float32), exact)


def test_small_updates_are_not_lost():
    params = {"w": jnp.ones(1000, jnp.bfloat16)}
    updates = {"w": jnp.full(1000, 1e-4)}
    nearest, stochastic = params, params
    apply = jax.jit(stam_jax.apply_updates)
    for t in range(200):
        nearest = optax.apply_updates(nearest, updates)
        stochastic = apply(stochastic, updates, jax.random.fold_in(KEY, t))
    assert float(jnp.abs(nearest["w"].astype(jnp.float32) - 1).max()) == 0.0
    assert float(stochastic["w"].astype(jnp.float32).mean()) == pytest.approx(1.02, abs=2e-3)


def test_other_dtypes_and_none_leaves_are_as_in_optax():
    params = {"f": jnp.ones(3), "h": jnp.ones(3, jnp.float16), "n": None}
    updates = {"f": jnp.full(3, 0.3), "h": jnp.full(3, 1e-3), "n": None}
    ours, theirs = (
        stam_jax.apply_updates(params, updates, KEY),
        optax.apply_updates(params, updates),
    )
    for name in ("f", "h"):
        np.testing.assert_array_equal(ours[name], theirs[name])
        assert ours[name].dtype == params[name].dtype
    assert ours["n"] is None


def test_bits_depend_on_key_and_path_and_not_on_neighbours():
    w = jnp.linspace(0.1, 1.0, 500).astype(jnp.bfloat16)
    u = jnp.full(500, 1e-4)

    def rounded(params, updates, key=KEY):
        return np.asarray(stam_jax.apply_updates(params, updates, key)["w"], np.float32)

    alone = rounded({"w": w}, {"w": u})
    np.testing.assert_array_equal(alone, rounded({"a": w, "w": w}, {"a": u, "w": u}))
    both = stam_jax.apply_updates({"a": w, "w": w}, {"a": u, "w": u}, KEY)
    assert (np.asarray(both["a"], np.float32) != alone).any()
    assert (rounded({"w": w}, {"w": u}, jax.random.key(8)) != alone).any()
