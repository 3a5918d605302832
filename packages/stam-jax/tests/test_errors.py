"""Bad input: the message names the leaf, the value and the remedy, at trace time at the latest."""

import jax
import jax.numpy as jnp
import pytest
import stam_jax

BOTH = pytest.mark.parametrize("make", [stam_jax.stam, stam_jax.stam_lite])
PARAMS = {"dense": {"b": jnp.ones(2), "w": jnp.ones((2, 3))}}


@pytest.fixture(params=[stam_jax.stam, stam_jax.stam_lite], ids=["stam", "stam_lite"])
def optimizer(request):
    return request.param()


def test_integer_parameters(optimizer):
    with pytest.raises(
        TypeError,
        match=r"^parameter leaf 'dense/ids' has dtype int32.*s\.partition or optax\.masked",
    ):
        jax.eval_shape(optimizer.init, {"dense": {"ids": jnp.arange(3), "w": jnp.ones(2)}})


def test_integer_gradients(optimizer):
    state = optimizer.init(PARAMS)
    grads = {"dense": {"b": jnp.ones(2), "w": jnp.ones((2, 3), jnp.int32)}}
    with pytest.raises(TypeError, match=r"^gradient leaf 'dense/w' has dtype int32"):
        jax.eval_shape(optimizer.update, grads, state, PARAMS)


def test_a_leaf_that_the_state_lacks(optimizer):
    state = optimizer.init(PARAMS)
    grads = {"dense": {**PARAMS["dense"], "extra": jnp.ones(1)}}
    with pytest.raises(
        ValueError,
        match=r"leaf 'dense/extra' of the gradients is missing in the optimizer state \(3",
    ):
        jax.eval_shape(optimizer.update, grads, state, grads)


def test_a_leaf_that_the_gradients_lack(optimizer):
    state = optimizer.init(PARAMS)
    grads = {"dense": {"b": jnp.ones(2)}}
    with pytest.raises(
        ValueError, match=r"leaf 'dense/w' of the optimizer state is missing in the g"
    ):
        jax.eval_shape(optimizer.update, grads, state, grads)


def test_containers_that_differ(optimizer):
    state = optimizer.init([jnp.ones(2)])
    with pytest.raises(ValueError, match=r"the containers around leaf '0' differ"):
        jax.eval_shape(optimizer.update, (jnp.ones(2),), state, (jnp.ones(2),))


def test_a_shape_that_differs(optimizer):
    state = optimizer.init(PARAMS)
    grads = {"dense": {"b": jnp.ones(2), "w": jnp.ones((3, 2))}}
    with pytest.raises(
        ValueError,
        match=r"'dense/w' has shape \(3, 2\) and the optimizer state has \(2, 3\) there: call init",
    ):
        jax.eval_shape(optimizer.update, grads, state, grads)


def test_missing_parameters(optimizer):
    with pytest.raises(
        ValueError,
        match=r"^params are missing, and weight_decay is 0\.01: call update\(grads, state",
    ):
        optimizer.update(PARAMS, optimizer.init(PARAMS))


@BOTH
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"learning_rate": 0.0}, r"^learning_rate must be > 0 and finite, got 0\.0"),
        ({"b1_base": 1.0}, r"^b1_base must be in the open interval \(0, 1\), got 1\.0"),
        ({"weight_decay": -0.1}, r"^weight_decay must be >= 0 and finite, got -0\.1"),
        ({"adapt_strength": 0.7}, r"^adapt_strength must be in \[0, 0\.5\], got 0\.7"),
        (
            {"nonfinite": "ignore"},
            r"^nonfinite must be 'propagate', 'zero' or 'skip', got 'ignore'",
        ),
        ({"stat_sample": 0}, r"^stat_sample must be >= 1, got 0"),
        ({"parity": "1.0"}, r"^parity must be None or 'stam-optimizer-0\.1\.0', got '1\.0'"),
    ],
)
def test_ranges(make, options, says):
    with pytest.raises(ValueError, match=says):
        make(**options)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (stam_jax.stam, "mu_dtype"),
        (stam_jax.stam, "nu_dtype"),
        (stam_jax.stam_lite, "state_dtype"),
    ],
)
def test_a_storage_dtype_that_is_not_floating(make, name):
    with pytest.raises(ValueError, match=rf"^{name} must be a floating dtype or None, got int8"):
        make(**{name: "int8"})


@BOTH
def test_an_axis_that_the_leaf_lacks(make):
    optimizer = make(stat_axes=lambda path, leaf: (1,))
    with pytest.raises(
        ValueError, match=r"returned axis 1 for leaf 'dense/b', which has 1 dimension"
    ):
        optimizer.init(PARAMS)


@BOTH
def test_statistics_packed_for_other_axes(make):
    state = make().init(PARAMS)
    optimizer = make(stat_axes=lambda path, leaf: (0,))
    with pytest.raises(
        ValueError, match=r"packed statistics have shape \(2,\), and these 2 leaves n"
    ):
        optimizer.update(PARAMS, state, PARAMS)


def test_diagnostics_of_something_else():
    with pytest.raises(
        ValueError, match=r"^no STAM or STAMLite state in tuple: pass the state that"
    ):
        stam_jax.diagnostics((), PARAMS)
    state = stam_jax.stam().init(PARAMS)
    with pytest.raises(ValueError, match=r"a leaf 'dense/b' that params lack"):
        stam_jax.diagnostics(state, {"other": jnp.ones(2)})
