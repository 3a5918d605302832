"""Parameters of 8 bits and fewer, and leaves that are no arrays of numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import stam_jax
from jax.experimental import sparse

BOTH = pytest.mark.parametrize("make", [stam_jax.stam, stam_jax.stam_lite])


@BOTH
@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "float4_e2m1fn"])
def test_narrow_parameters_have_wide_states(make, dtype):
    params = {"v": jnp.ones(3), "w": jnp.ones((2, 4), dtype)}
    optimizer = make(0.5)
    state = optimizer.init(params)
    updates, state = jax.jit(optimizer.update)(params, state, params)
    assert state[0].mu["w"].dtype == jnp.float32
    assert updates["w"].dtype == dtype
    new = optax.apply_updates(params, updates)
    np.testing.assert_allclose(new["w"].astype(jnp.float32), 0.5, atol=0.01)
    wide = {"v": jnp.ones(3), "w": jnp.full((2, 4), 0.5)}
    updates, state = optimizer.update(wide, state, params)
    assert updates["w"].dtype == jnp.float32
    new = stam_jax.apply_updates(new, updates, jax.random.key(0))
    assert new["w"].dtype == dtype
    assert float(new["w"].astype(jnp.float32).max()) <= 0.25


@BOTH
@pytest.mark.parametrize(
    ("leaf", "says"),
    [
        (
            lambda: sparse.BCOO.fromdense(jnp.eye(2)),
            r"leaf 'a/w' is a sparse BCOO, whose indices cannot be optimised: pass its \.data",
        ),
        (lambda: jax.random.key(0), r"leaf 'a/w' is key<fry>, and only floating.*optax\.masked"),
        (lambda: jnp.tanh, r"leaf 'a/w' is \w+, and only floating or complex arrays"),
        (
            lambda: jnp.ones(2, "float8_e8m0fnu"),
            r"leaf 'a/w' has dtype float8_e8m0fnu, which has neither a sign nor a zero",
        ),
    ],
    ids=["sparse", "key", "function", "scale"],
)
def test_what_cannot_be_optimised_is_named(make, leaf, says):
    with pytest.raises(TypeError, match=f"^parameter {says}"):
        make().init({"a": {"b": jnp.ones(2), "w": leaf()}})
