"""Saved state: by name, with a format version, loadable by every later release."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import stam_jax

GOLDEN = Path(__file__).parent / "golden"
GOLDEN_OPTIMIZERS = {
    "stam-format1": stam_jax.stam(0.05),
    "stam_lite-format1": stam_jax.stam_lite(0.05, moment_decay=0.9),
}
MAKERS = {
    "stam": lambda: stam_jax.stam(lambda c: 1e-2, weight_decay=lambda c: 0.1, mu_dtype="bfloat16"),
    "stam_lite": lambda: stam_jax.stam_lite(1e-2, state_dtype="bfloat16"),
    "masked": lambda: optax.masked(stam_jax.stam(1e-2), {"a": False, "b": True, "w": True}),
    "partitioned": lambda: optax.transforms.partition(
        {"x": stam_jax.stam(1e-2), "y": stam_jax.stam_lite(1e-2)}, {"a": "x", "b": "y", "w": "x"}
    ),
}


def parameters():
    rng = np.random.default_rng(5)
    shapes = {"a": (2, 3), "b": (3,), "w": (4, 2)}
    return {
        k: jnp.asarray(10.0**i * rng.standard_normal(s), jnp.float32)
        for i, (k, s) in enumerate(shapes.items())
    }


def stepped(optimizer, params, n=3):
    state = optimizer.init(params)
    for t in range(n):
        grads = jax.tree.map(lambda p, t=t: jnp.sin(p + t) * p, params)
        _, state = optimizer.update(grads, state, params)
    return state


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.mark.parametrize("name", GOLDEN_OPTIMIZERS)
def test_a_golden_state_loads_and_goes_on(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        parts = {}
        for key in file.files:
            part, _, entry = key.partition(":")
            parts.setdefault(part, {})[entry] = file[key]
    params = jax.tree.map(jnp.asarray, parts["before"])
    optimizer = GOLDEN_OPTIMIZERS[name]
    state = stam_jax.state_from_dict(optimizer.init(params), parts["state"])
    assert int(state[0].count) == 7
    updates, _ = optimizer.update(parts["grads"], state, params)
    for leaf, p in optax.apply_updates(params, updates).items():
        np.testing.assert_allclose(p, parts["after"][leaf], rtol=1e-6)


def test_every_format_has_its_golden_files():
    formats = {
        f"{kind}-format{v}"
        for kind in ("stam", "stam_lite")
        for v in range(1, stam_jax.FORMAT_VERSION + 1)
    }
    assert formats == {path.stem for path in GOLDEN.glob("*.npz")} == set(GOLDEN_OPTIMIZERS)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
def test_a_round_trip_changes_no_bit(make):
    params, optimizer = parameters(), make()
    state = stepped(optimizer, params)
    assert_equal(
        stam_jax.state_from_dict(optimizer.init(params), stam_jax.state_to_dict(state)), state
    )


def test_kept_axes_round_trip():
    def axes(path, leaf):
        return (0,) if leaf.ndim == 2 else ()

    params, optimizer = parameters(), stam_jax.stam(stat_axes=axes)
    state = stepped(optimizer, params)
    saved = stam_jax.state_to_dict(state, stat_axes=axes)
    assert saved["0/s2/w"].shape == (4, 1)
    assert_equal(stam_jax.state_from_dict(optimizer.init(params), saved, stat_axes=axes), state)


def test_a_renamed_leaf_keeps_its_own_statistics():
    """A rename that changes the order must not swap what is packed by position."""
    params, optimizer = parameters(), stam_jax.stam()
    saved = stam_jax.state_to_dict(stepped(optimizer, params))
    renamed = {"z" if key == "a" else key: p for key, p in params.items()}
    moved = {
        key.removesuffix("/a") + "/z" if key.endswith("/a") else key: v for key, v in saved.items()
    }
    state = stam_jax.state_from_dict(optimizer.init(renamed), moved)
    report = stam_jax.diagnostics(state, renamed)
    for new, old in (("z", "a"), ("b", "b"), ("w", "w")):
        assert float(report[new].scale) == saved[f"0/tau/{old}"]


@pytest.mark.parametrize("make", [stam_jax.stam, stam_jax.stam_lite])
def test_leaves_of_one_path_are_refused_and_not_mixed_up(make):
    params = {"a": {"b": jnp.ones(2)}, "a/b": jnp.zeros(2)}
    state = make().init(params)
    for read in (stam_jax.state_to_dict, lambda state: stam_jax.diagnostics(state, params)):
        with pytest.raises(ValueError, match=r"^two leaves have the path 'a/b', and a table by"):
            read(state)


def test_bad_saved_states_are_refused():
    params, optimizer = parameters(), stam_jax.stam()
    template = optimizer.init(params)
    saved = stam_jax.state_to_dict(template)
    without = {k: v for k, v in saved.items() if k != "0/s2/w"}
    with pytest.raises(
        ValueError, match=r"^the saved state has no entry '0/s2/w': it was made for"
    ):
        stam_jax.state_from_dict(template, without)
    with pytest.raises(
        ValueError, match=r"entry '0/mu/w' has shape \(1,\), and the state needs \(4"
    ):
        stam_jax.state_from_dict(template, {**saved, "0/mu/w": np.zeros(1)})
    with pytest.raises(
        ValueError, match=r"^the saved state has format version 2, and this release r"
    ):
        stam_jax.state_from_dict(template, {**saved, "format_version": 2})
    with pytest.raises(ValueError, match=r"^the saved state has format version none"):
        stam_jax.state_from_dict(template, {})
