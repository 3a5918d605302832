"""Statistics in 16-bit training, over stacked layers, and from samples."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import stam_jax
from stam_core import STAM, STAM_LITE
from stam_core.reference import Driver

BOTH = pytest.mark.parametrize("make", [stam_jax.stam, stam_jax.stam_lite])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "rule", "slots"),
    [
        (stam_jax.stam, STAM, ("s2", "tau", "beta1")),
        (stam_jax.stam_lite, STAM_LITE, ("e2", "beta1")),
    ],
)
def test_bfloat16_statistics_after_ten_thousand_steps(make, rule, slots):
    """Within 1e-3 of float64 on the same (rounded) gradients: the scalars are never 16-bit.

    The first moment is kept in float32 here, so that the comparison is one of statistics; kept in
    bfloat16 (the default for such parameters) its rounding is part of every residual.
    """
    steps, size = 10_000, 64
    rng = np.random.default_rng(0)
    grads = jnp.asarray(rng.normal(0.3, 1.0, (steps, size)), jnp.bfloat16)
    wide = {"mu_dtype": "float32"} if make is stam_jax.stam else {"state_dtype": "float32"}
    optimizer = make(1e-3, **wide)
    params = {"w": jnp.zeros(size, jnp.bfloat16)}

    def step(state, g):
        return optimizer.update({"w": g}, state, params)[1], None

    state, _ = jax.jit(lambda s, g: jax.lax.scan(step, s, g))(optimizer.init(params), grads)
    oracle = Driver(rule, learning_rate=1e-3)
    leaves = {"w": np.zeros(size)}
    slots_of = oracle.init(leaves)
    for g in np.asarray(grads, np.float64):
        _, slots_of = oracle.step(leaves, {"w": g}, slots_of)
    for slot in slots:
        actual, expected = float(getattr(state[0], slot)[0]), float(slots_of[f"{slot}/w"])
        assert actual == pytest.approx(expected, rel=1e-3), slot


@pytest.mark.slow
@pytest.mark.parametrize(
    ("draw", "settled"),
    [(jax.random.normal, 0.790), (jax.random.uniform, 0.796), (jax.random.laplace, 0.783)],
)
@pytest.mark.parametrize("scale", [1e-2, 1e4])
def test_beta1_of_dense_noise_settles_whatever_its_scale(draw, settled, scale):
    """What the READMEs say of the published rule: about 0.79, from the shape of the noise alone."""
    optimizer = stam_jax.stam()

    def step(state, key):
        noise = draw(key, (1000,))
        # The uniform distribution lies in [0, 1): its mean of 1/2 is no noise.
        centred = noise - 0.5 if draw is jax.random.uniform else noise
        return optimizer.update({"w": scale * centred}, state, {"w": centred})[1], None

    keys = jax.random.split(jax.random.key(0), 8000)
    start = optimizer.init({"w": jnp.zeros(1000)})
    state, _ = jax.jit(lambda state: jax.lax.scan(step, state, keys))(start)
    assert float(state[0].beta1[0]) == pytest.approx(settled, abs=1.5e-3)


@BOTH
@pytest.mark.parametrize("options", [{}, {"stat_sample": 7}])
def test_stacked_layers_equal_unstacked_ones(make, options):
    rng = np.random.default_rng(1)
    layers = [jnp.asarray(10.0**i * rng.standard_normal((4, 5)), jnp.float32) for i in range(3)]
    apart = {f"layer{i}": layer for i, layer in enumerate(layers)}
    stacked = {"layers": jnp.stack(layers)}

    def drive(optimizer, params):
        state = optimizer.init(params)
        for t in range(5):
            grads = jax.tree.map(lambda p, t=t: p * jnp.sin(p + t), params)
            updates, state = jax.jit(optimizer.update)(grads, state, params)
            params = optax.apply_updates(params, updates)
        return params, state

    kept = make(0.1, stat_axes=lambda path, leaf: (0,) if path == "layers" else (), **options)
    (p, state), (q, expected) = drive(kept, stacked), drive(make(0.1, **options), apart)
    # Five float32 steps whose sums XLA orders differently for the two shapes.
    np.testing.assert_allclose(p["layers"], jnp.stack(list(q.values())), rtol=3e-6)
    np.testing.assert_allclose(state[0].beta1, expected[0].beta1, rtol=1e-6)
    merged, _ = drive(make(0.1, **options), stacked)
    assert float(jnp.abs(merged["layers"] - p["layers"]).max()) > 1e-3


@BOTH
def test_axes_are_kept_at_any_place(make):
    """Keeping the last axis of a leaf is keeping the first one of its transpose."""
    w = jnp.asarray(np.random.default_rng(2).standard_normal((4, 5, 3)), jnp.float32)
    last = make(0.1, stat_axes=lambda path, leaf: (-1,))
    first = make(0.1, stat_axes=lambda path, leaf: (0,))
    updates, state = last.update({"w": w}, last.init({"w": w}), {"w": w})
    turned = {"w": jnp.moveaxis(w, -1, 0)}
    expected, other = first.update(turned, first.init(turned), turned)
    np.testing.assert_allclose(jnp.moveaxis(updates["w"], -1, 0), expected["w"], rtol=1e-6)
    np.testing.assert_allclose(state[0].s, other[0].s, rtol=1e-6)
    assert state[0].s.shape == (3,)


def test_diagnostics_report_what_the_rule_computed():
    rng = np.random.default_rng(3)
    params = {"b": jnp.zeros(3), "w": jnp.zeros((4, 2))}
    optimizer, oracle = stam_jax.stam(), Driver(STAM)
    state = optimizer.init(params)
    slots = oracle.init({k: np.zeros(p.shape) for k, p in params.items()})
    for _ in range(20):
        grads = {k: rng.standard_normal(p.shape).astype(np.float32) for k, p in params.items()}
        _, state = optimizer.update(jax.tree.map(jnp.asarray, grads), state, params)
        _, slots = oracle.step({k: np.zeros(p.shape) for k, p in params.items()}, grads, slots)
    report = jax.jit(stam_jax.diagnostics)(state, params)
    for name, leaf in report.items():
        s = slots[f"s/{name}"]
        assert float(leaf.beta1) == pytest.approx(slots[f"beta1/{name}"], rel=1e-5)
        assert float(leaf.z) == pytest.approx(s / (1 - s), rel=1e-4)
        assert float(leaf.variance) == pytest.approx(slots[f"s2/{name}"], rel=1e-5)
        assert float(leaf.scale) == pytest.approx(slots[f"tau/{name}"], rel=1e-5)


def test_diagnostics_of_stacked_layers_have_an_entry_per_layer():
    def axes(path, leaf):
        return (0,) if path == "layers" else ()

    params = {"head": jnp.ones(3), "layers": jnp.ones((4, 2))}
    optimizer = stam_jax.stam_lite(stat_axes=axes)
    _, state = optimizer.update(params, optimizer.init(params), params)
    report = stam_jax.diagnostics(state, params, stat_axes=axes)
    assert report["layers"].beta1.shape == (4,)
    assert report["head"].beta1.shape == ()
    assert float(report["head"].scale) == pytest.approx(np.sqrt(0.01), rel=1e-5)
