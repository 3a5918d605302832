"""The class interface: the same optimizers, with updates to subtract."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stam_jax
from stam_jax import descent

PARAMS = {"w": jnp.asarray([[1.0, -2.0], [0.5, 4.0]]), "b": jnp.asarray([0.3, -0.2])}
ROWS = [
    (descent.STAM, stam_jax.stam, {"b2": 0.99, "tau_decay": 0.9, "statistics": "corrected"}),
    (descent.STAM, stam_jax.stam, {"fallback_threshold": 2.0, "nonfinite": "skip"}),
    (descent.STAMLite, stam_jax.stam_lite, {"beta1_update_interval": 2, "moment_decay": 0.9}),
    (descent.STAMLite, stam_jax.stam_lite, {"state_dtype": "bfloat16", "stat_sample": 2}),
]


@pytest.mark.parametrize(("kind", "make", "options"), ROWS)
def test_updates_are_the_negative_of_the_transformations(kind, make, options):
    ours, theirs = kind(learning_rate=0.1, **options), make(learning_rate=0.1, **options)
    state, other = ours.init(PARAMS), theirs.init(PARAMS)
    update, transformation = jax.jit(ours.update), jax.jit(theirs.update)
    for t in range(4):
        grads = jax.tree.map(lambda p, t=t: jnp.sin(p + t), PARAMS)
        updates, state = update(grads, state, PARAMS)
        expected, other = transformation(grads, other, PARAMS)
        for name in PARAMS:
            np.testing.assert_array_equal(updates[name], -expected[name])


@pytest.mark.parametrize("kind", [descent.STAM, descent.STAMLite])
def test_subtracting_the_updates_descends(kind):
    optimizer = kind(learning_rate=0.1, weight_decay=0.0)
    params, state = PARAMS, optimizer.init(PARAMS)

    def loss(params):
        return sum(jnp.sum(p**2) for p in jax.tree.leaves(params))

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return jax.tree.map(lambda p, u: p - u, params, updates), state

    for _ in range(100):
        params, state = step(params, state)
    assert loss(params) < 0.05 * loss(PARAMS)


@pytest.mark.parametrize("kind", [descent.STAM, descent.STAMLite])
def test_it_cannot_be_mistaken_for_an_optax_transformation(kind):
    assert not isinstance(kind(), tuple)
    with pytest.raises(ValueError, match=r"^adapt_strength must be in \[0, 0\.5\], got 0\.9"):
        kind(adapt_strength=0.9)


ALIASES = [
    (descent.STAM, stam_jax.stam),
    (descent.STAMLite, stam_jax.stam_lite),
    (descent.STAC, stam_jax.stac),
]


@pytest.mark.parametrize(("kind", "alias"), ALIASES)
def test_signatures_are_those_of_the_optimizers(kind, alias):
    mine, theirs = (inspect.signature(f).parameters for f in (kind, alias))
    assert list(mine.values()) == list(theirs.values())
    assert len(mine) >= 15


@pytest.mark.parametrize(("kind", "alias"), ALIASES)
def test_help_describes_every_argument(kind, alias):
    described = inspect.getdoc(kind.__init__)
    assert all(f"\n    {name}: " in described for name in inspect.signature(alias).parameters)
    assert "\nRaises:\n    ValueError: " in described


@pytest.mark.parametrize(("kind", "alias"), ALIASES)
def test_what_no_argument_is_called_is_refused(kind, alias):
    with pytest.raises(TypeError, match=rf"^{alias.__name__}\(\) got an unexpected keyword .*'lr'"):
        kind(lr=0.1)


def test_the_ancestors_eight_arguments_are_taken_by_position():
    given = (0.1, 0.8, 0.99, 1e-6, 0.02, 0.3, 0.9, 50.0)
    names = list(inspect.signature(descent.STAM).parameters)[: len(given)]
    assert names[5:] == ["adapt_strength", "tau_decay", "fallback_threshold"]
    ours, theirs = descent.STAM(*given), stam_jax.stam(**dict(zip(names, given, strict=True)))
    updates, _ = ours.update(PARAMS, ours.init(PARAMS), PARAMS)
    expected, _ = theirs.update(PARAMS, theirs.init(PARAMS), PARAMS)
    assert all(bool((updates[name] == -expected[name]).all()) for name in PARAMS)
