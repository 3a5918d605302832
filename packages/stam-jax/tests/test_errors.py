"""Bad input: the message names the leaf, the value and the remedy, at trace time at the latest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stam_jax

BOTH = pytest.mark.parametrize("make", [stam_jax.stam, stam_jax.stam_lite])
PARAMS = {"dense": {"b": jnp.ones(2), "w": jnp.ones((2, 3))}}


@pytest.fixture(params=["stam", "stam_lite", "stac"])
def optimizer(request):
    return getattr(stam_jax, request.param)()


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


@BOTH
def test_missing_parameters(make):
    optimizer = make()
    with pytest.raises(
        ValueError,
        match=r"^params are missing, and weight_decay is 0\.01: call update\(grads, state",
    ):
        optimizer.update(PARAMS, optimizer.init(PARAMS))


def test_a_leaf_of_the_other_part():
    roles = {"dense": {"b": "adamw", "w": "sign"}}
    state = stam_jax.stac(partition=roles).init(PARAMS)
    optimizer = stam_jax.stac(partition={"dense": {"b": "sign", "w": "adamw"}})
    with pytest.raises(ValueError, match=r"leaf 'dense/b' is in the other part of the partition"):
        optimizer.update(PARAMS, state, PARAMS)


def test_parameters_of_another_structure():
    optimizer = stam_jax.stac()
    with pytest.raises(
        ValueError, match=r"leaf 'dense/w' of the parameters is missing in the gradients \(1 leav"
    ):
        optimizer.update({"dense": {"b": jnp.ones(2)}}, optimizer.init(PARAMS), PARAMS)


@pytest.mark.parametrize("policy", ["skip", "zero", "propagate"])
@pytest.mark.parametrize("leaf", ["text", jax.random.key(0)], ids=["text", "key"])
def test_gradients_that_are_no_numbers_whatever_the_policy(policy, leaf):
    for make in (stam_jax.stam, stam_jax.stac):
        optimizer = make(nonfinite=policy)
        state = optimizer.init({"w": jnp.ones(())})
        with pytest.raises(TypeError, match=r"^gradient leaf 'w' is .*only floating or complex"):
            optimizer.update({"w": leaf}, state, {"w": jnp.ones(())})


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("leaf", [np.ones((2, 3)), 1.0], ids=["float64 of NumPy", "number"])
def test_leaves_that_jax_has_not_made(optimizer, leaf):
    params = {"w": leaf}
    state = optimizer.init(params)
    updates, state = optimizer.update(params, state, params)
    assert {x.dtype for x in jax.tree.leaves((updates, state))} == {
        jnp.dtype("float32"),
        jnp.dtype("int32"),
    }


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
