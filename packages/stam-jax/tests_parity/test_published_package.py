"""Parity mode against the published stam-optimizer 0.1.0, in an environment that has both.

    nox -s parity

The folder lies outside the default test paths, because the package is no dependency of ours.
"""

import functools
import importlib.metadata
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stam_optimizer
from stam_jax import descent

STEPS = 200
PARITY = {"parity": "stam-optimizer-0.1.0"}
SHAPES = {"b": (6,), "emb": (40, 4), "w": (8, 5)}


NOISE = pytest.mark.parametrize("noise", ["dense", "shift", "sparse", "nonfinite"])


def grid(**choices):
    """Return every combination of the choices, as keyword arguments."""
    return [
        dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())
    ]


STAM_GRID = grid(
    b1_base=(0.9, 0.6),
    b2=(0.999, 0.95),
    adapt_strength=(0.0, 0.2, 0.5),
    weight_decay=(0.0, 0.1),
    tau_decay=(0.99, 0.8),
    fallback_threshold=(100.0, 1.5),
)
LITE_GRID = grid(
    b1_base=(0.9, 0.6),
    adapt_strength=(0.0, 0.2, 0.5),
    weight_decay=(0.0, 0.1),
    moment_decay=(0.99, 0.8),
    beta1_update_interval=(1, 5),
)


@functools.cache
def gradients(kind):
    """Dense noise, a scale that falls by a thousand on step 100, or one row in twenty."""
    rng = np.random.default_rng(11)
    found = []
    for t in range(STEPS):
        g = {k: rng.standard_normal(s) for k, s in SHAPES.items()}
        if kind == "shift" and t >= 100:
            g = {k: 1e-3 * x + 1e-4 for k, x in g.items()}
        if kind == "sparse":
            g = {k: x * (rng.random((len(x), *[1] * (x.ndim - 1))) < 0.05) for k, x in g.items()}
        if kind == "nonfinite" and t % 40 == 7:
            g["w"][0, 0], g["b"][1] = np.nan, np.inf
        found.append({k: np.asarray(x, np.float32) for k, x in g.items()})
    return found


def initial():
    rng = np.random.default_rng(12)
    return {k: jnp.asarray(rng.uniform(-1, 1, s), jnp.float32) for k, s in SHAPES.items()}


@jax.jit
def subtracted(params, updates):
    return jax.tree.map(lambda p, u: p - u, params, updates)


def published(kind, options, noise):
    """The package's parameters after all steps; its own jit takes the hyperparameters as values."""
    optimizer, params = kind(**options), initial()
    state = optimizer.init(params)
    for g in gradients(noise):
        updates, state = optimizer.update(g, state, params)
        params = subtracted(params, updates)
    return params


def ours(kind, options, noise, **fixed):
    """Ours, in one loop."""
    stacked = jax.tree.map(lambda *xs: np.stack(xs), *gradients(noise))

    def step(carry, g):
        params, state = carry
        updates, state = optimizer.update(g, state, params)
        return (jax.tree.map(lambda p, u: p - u, params, updates), state), None

    optimizer, params = kind(**options, **fixed), initial()
    return jax.lax.scan(step, (params, optimizer.init(params)), stacked)[0][0]


@functools.partial(jax.jit, static_argnames=("kind", "noise"))
def ours_traced(kind, options, noise):
    """Ours with the hyperparameters as values, so that the grid compiles once per kind of noise."""
    return ours(kind, options, noise, **PARITY)


def assert_close(a, b):
    for name in SHAPES:
        np.testing.assert_allclose(a[name], b[name], rtol=0, atol=5e-6)


def as_arrays(options):
    return {
        k: jnp.asarray(v, jnp.int32 if isinstance(v, int) else None) for k, v in options.items()
    }


def test_the_package_is_the_one_meant():
    assert importlib.metadata.version("stam-optimizer") == "0.1.0"


@NOISE
@pytest.mark.parametrize("options", STAM_GRID, ids=str)
def test_stam(options, noise):
    theirs = published(stam_optimizer.STAM, options, noise)
    assert_close(ours_traced(descent.STAM, as_arrays(options), noise), theirs)


@NOISE
@pytest.mark.parametrize("options", LITE_GRID, ids=str)
def test_stam_lite(options, noise):
    theirs = published(stam_optimizer.STAMLite, options, noise)
    assert_close(ours_traced(descent.STAMLite, as_arrays(options), noise), theirs)


@NOISE
@pytest.mark.parametrize("name", ["STAM", "STAMLite"])
def test_the_defaults_as_python_numbers(name, noise):
    theirs = published(getattr(stam_optimizer, name), {}, noise)
    assert_close(ours(getattr(descent, name), {}, noise, **PARITY), theirs)


def test_without_parity_mode_the_difference_would_show():
    options = {"fallback_threshold": 1.5}
    theirs = published(stam_optimizer.STAM, options, "sparse")
    plain = ours(descent.STAM, options, "sparse")
    assert max(float(jnp.abs(plain[k] - theirs[k]).max()) for k in SHAPES) > 1e-4
