"""Trees that are not plain: masked, partly None, empty, with scalar and zero-size leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import stam_jax

BOTH = pytest.mark.parametrize("make", [stam_jax.stam, stam_jax.stam_lite])


def steps(optimizer, params, n=3):
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for t in range(n):
        grads = jax.tree.map(lambda p, t=t: jnp.cos(jnp.asarray(p) * 3 + t).astype(p.dtype), params)
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@BOTH
def test_none_leaves_are_passed_over(make):
    w = jnp.asarray([1.0, -2.0])
    with_none, state = steps(make(0.1), {"a": None, "w": w, "z": (None,)})
    without, _ = steps(make(0.1), {"w": w})
    assert with_none["a"] is None
    np.testing.assert_array_equal(with_none["w"], without["w"])
    assert state[0].beta1.shape == (1,)


@BOTH
def test_masked_leaves_are_passed_over(make):
    params = {"a": jnp.ones(3), "w": jnp.asarray([1.0, -2.0])}
    masked, state = steps(optax.masked(make(0.1), {"a": False, "w": True}), params)
    alone, _ = steps(make(0.1), {"w": params["w"]})
    np.testing.assert_array_equal(masked["w"], alone["w"])
    assert isinstance(state.inner_state[0].mu["a"], optax.MaskedNode)
    assert list(stam_jax.diagnostics(state, params)) == ["w"]


@BOTH
def test_partitioned_leaves_have_an_optimizer_each(make):
    params = {"a": jnp.ones(3), "w": jnp.asarray([1.0, -2.0])}
    optimizer = optax.transforms.partition(
        {"ours": make(0.1), "sgd": optax.sgd(0.1)}, {"a": "sgd", "w": "ours"}
    )
    moved, state = steps(optimizer, params)
    alone, _ = steps(make(0.1), {"w": params["w"]})
    np.testing.assert_array_equal(moved["w"], alone["w"])
    assert list(stam_jax.diagnostics(state, params)) == ["w"]


@BOTH
@pytest.mark.parametrize("tree", [{}, (), {"a": None}])
def test_an_empty_tree_stays_empty(make, tree):
    optimizer = make()
    state = optimizer.init(tree)
    updates, state = jax.jit(optimizer.update)(tree, state, tree)
    assert updates == tree
    assert state[0].beta1.shape == (0,)
    assert int(state[0].count) == 1


@BOTH
def test_scalar_and_zero_size_leaves(make):
    params = {"scalar": jnp.asarray(0.5), "none": jnp.zeros((0, 3)), "w": jnp.ones((2, 2))}
    moved, state = steps(make(0.1), params)
    alone, _ = steps(make(0.1), {"scalar": params["scalar"]})
    np.testing.assert_array_equal(moved["scalar"], alone["scalar"])
    assert moved["none"].shape == (0, 3)
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(state))


@BOTH
def test_each_leaf_is_on_its_own(make):
    """Statistics are per tensor: a neighbour changes nothing, and order is no matter."""
    w, v = jnp.asarray([1.0, -2.0]), 100.0 * jnp.ones((3, 2))
    together, state = steps(make(0.1), {"w": w, "a": v})
    alone, alone_state = steps(make(0.1), {"w": w})
    np.testing.assert_array_equal(together["w"], alone["w"])
    assert state[0].beta1[1] == alone_state[0].beta1[0]
    assert state[0].b1_prod[1] == alone_state[0].b1_prod[0]


@BOTH
def test_a_weight_decay_mask(make):
    params = {"b": jnp.ones(2), "w": jnp.ones(2)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    for mask in ({"b": False, "w": True}, lambda p: {"b": False, "w": True}):
        optimizer = make(0.1, weight_decay=0.5, mask=mask)
        updates, _ = optimizer.update(zeros, optimizer.init(params), params)
        np.testing.assert_allclose(updates["b"], 0.0)
        np.testing.assert_allclose(updates["w"], -0.05, rtol=1e-6)


@BOTH
@pytest.mark.parametrize("decay", [0.5, lambda count: 0.5], ids=["constant", "scheduled"])
def test_a_leaf_without_a_gradient_may_have_a_parameter(make, decay):
    """As in optax: an Equinox model may be handed over whole, though its filtered tree was."""
    params = {"a": None, "w": jnp.asarray([1.0, -2.0])}
    optimizer = make(0.1, weight_decay=decay)
    state = optimizer.init(params)
    expected, _ = optimizer.update(params, state, params)
    for whole in (jnp.ones(3), jnp.sin):
        updates, _ = optimizer.update(params, state, {**params, "a": whole})
        assert updates["a"] is None
        np.testing.assert_array_equal(updates["w"], expected["w"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_dtypes_at_the_edges(dtype):
    params = {"w": jnp.ones((3, 2), dtype)}
    full = jnp.float32
    rows = [
        (stam_jax.stam(), dtype, full),
        (stam_jax.stam(mu_dtype="bfloat16", nu_dtype="bfloat16"), "bfloat16", "bfloat16"),
        (stam_jax.stam_lite(), full, None),
        (stam_jax.stam_lite(state_dtype="bfloat16"), "bfloat16", None),
        (stam_jax.stam_lite(state_dtype=None), dtype, None),
    ]
    for optimizer, mu, nu in rows:
        state = optimizer.init(params)
        for _ in range(2):
            updates, state = jax.jit(optimizer.update)(params, state, params)
            assert updates["w"].dtype == dtype
            assert state[0].mu["w"].dtype == mu
            assert nu is None or state[0].nu["w"].dtype == nu
            packed = [getattr(state[0], name) for name in state[0].__packed_fields__]
            assert {x.dtype for x in packed} == {jnp.dtype(full)}


@BOTH
def test_complex_leaves_are_measured_by_their_modulus(make):
    """A complex leaf z behaves as one tensor, whatever the phase of the plane it lies in."""
    rng = np.random.default_rng(0)
    plain = jnp.asarray(rng.standard_normal(6) + 1j * rng.standard_normal(6), jnp.complex64)
    turn = jnp.exp(0.7j).astype(jnp.complex64)

    def run(start):
        optimizer = make(0.1)
        params, state = {"w": start}, optimizer.init({"w": start})
        for _ in range(5):
            updates, state = jax.jit(optimizer.update)(params, state, params)
            params = optax.apply_updates(params, updates)
        return params["w"], state[0]

    (p, state), (q, turned) = run(plain), run(turn * plain)
    np.testing.assert_allclose(turn * p, q, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state.beta1, turned.beta1, rtol=1e-6)
    assert state.mu["w"].dtype == jnp.complex64
    if isinstance(state, stam_jax.ScaleByStamState):
        assert state.nu["w"].dtype == jnp.float32
    else:
        assert state.e1.dtype == jnp.complex64


def test_a_complex_leaf_leaves_its_real_neighbour_alone():
    w = jnp.asarray([1.0, -2.0])
    both, _ = steps(stam_jax.stam_lite(0.1), {"w": w})
    optimizer = stam_jax.stam_lite(0.1)
    params = {"c": jnp.ones(2, jnp.complex64), "w": w}
    state = optimizer.init(params)
    for t in range(3):
        grads = {"c": params["c"], "w": jnp.cos(params["w"] * 3 + t)}
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["w"], both["w"], rtol=1e-6)


@BOTH
def test_a_state_of_numpy_arrays_goes_on(make):
    params = {"a": jnp.ones(3), "b": jnp.full((2, 2), 2.0), "c": jnp.ones(3)}
    optimizer = make(0.1)
    _, state = optimizer.update(params, optimizer.init(params), params)
    expected = optimizer.update(params, state, params)
    from_host = optimizer.update(*jax.device_get((params, state, params)))
    jax.tree.map(np.testing.assert_array_equal, from_host, expected)
