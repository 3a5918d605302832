"""STAC for JAX: its exact limits, its storage, and the bits that all frameworks share."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import stam_jax
from stam_core import SIGN, SignHyperparams, int4, int8, noise
from stam_jax._rounding import _product, positions

RNG = np.random.default_rng(0)
PARAMS = {
    "body": {"w": jnp.asarray(RNG.uniform(-1, 1, (7, 5)), jnp.float32), "b": jnp.zeros(5)},
    "head": {"w": jnp.asarray(RNG.uniform(-1, 1, (5, 3)), jnp.float32)},
}


def gradients(steps, params=PARAMS):
    rng = np.random.default_rng(1)
    return [
        jax.tree.map(lambda p: jnp.asarray(rng.standard_normal(p.shape), p.dtype), params)
        for _ in range(steps)
    ]


def drive(optimizer, params, grads):
    update, state = jax.jit(optimizer.update), optimizer.init(params)
    for g in grads:
        updates, state = update(g, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def everywhere(role):
    return lambda tree: jax.tree.map(lambda _: role, tree)


def all_equal(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), a, b)))


# Limits


def test_all_sign_is_lion_with_equal_betas():
    ours = stam_jax.stac(1e-2, 0.9, weight_decay=0.1, partition=everywhere("sign"))
    theirs = optax.lion(1e-2, b1=0.9, b2=0.9, weight_decay=0.1)
    grads = gradients(50)
    (p, state), (q, other) = drive(ours, PARAMS, grads), drive(theirs, PARAMS, grads)
    for a, b in zip(jax.tree.leaves(p), jax.tree.leaves(q), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-7)
    mu = state.inner_states["sign"].inner_state[0].mu
    for a, b in zip(jax.tree.leaves(mu), jax.tree.leaves(other[0].mu), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=3e-7)


def test_all_adamw_is_optax_adamw():
    ours = stam_jax.stac(1e-2, weight_decay=0.1, partition=everywhere("adamw"))
    theirs = optax.adamw(1e-2, weight_decay=0.1)
    grads = gradients(50)
    (p, _), (q, _) = drive(ours, PARAMS, grads), drive(theirs, PARAMS, grads)
    for a, b in zip(jax.tree.leaves(p), jax.tree.leaves(q), strict=True):
        # Optax forms 1 - b2^t in float32: its first steps are off by up to 1.5e-5 of a rate.
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6)


def test_without_momentum_there_is_no_state():
    state = stam_jax.scale_by_sign_momentum(0.0).init(PARAMS)
    assert jax.tree.leaves((state.mu, state.mu_scale)) == []


# The bits of the 8-bit code


def coded_gradients(steps, shape):
    """Gradients over nine orders of magnitude: every level of the code, and ties between them."""
    rng = np.random.default_rng(2)
    for _ in range(steps):
        yield (rng.standard_normal(shape) * 10.0 ** rng.integers(-6, 3, shape)).astype(np.float32)


@pytest.mark.parametrize("shape", [(64, 300), (33, 5, 64), (16, 256)])
def test_codes_are_those_of_the_reference(shape):
    transformation = stam_jax.scale_by_sign_momentum(0.9, state_dtype="int8")
    update, state = jax.jit(transformation.update), transformation.init({"w": jnp.zeros(shape)})
    hp = SignHyperparams(sign_momentum=0.9)
    codes, scale = int8.encode(np.zeros(shape, np.float32), xp=np)
    for t, g in enumerate(coded_gradients(50, shape), start=1):
        _, state = update({"w": g}, state)
        old = int8.decode(codes, scale, xp=np)
        _, new = SIGN.update(g, {"mu": old}, {}, np.asarray(t), hp, xp=np)
        codes, scale = int8.encode(new["mu"], xp=np)
        np.testing.assert_array_equal(state.mu["w"], codes)
        np.testing.assert_array_equal(np.ravel(state.mu_scale["w"]), np.ravel(scale))


@pytest.mark.parametrize("shape", [(64, 301), (33, 5, 65)])
def test_codes_of_4_bits_are_those_of_the_reference(shape):
    transformation = stam_jax.scale_by_sign_momentum(0.9, state_dtype="int4", rounding_seed=5)
    state = transformation.init({"a": {"w": jnp.zeros(shape)}})
    update = jax.jit(transformation.update)
    hp, places = SignHyperparams(sign_momentum=0.9), np.arange(np.prod(shape), dtype=np.uint32)
    key = np.full(1, noise.moment_key(noise.noise_key(5, "a.w")), np.uint32)
    old = np.zeros(shape, np.float32)
    for t, g in enumerate(coded_gradients(20, shape), start=1):
        _, state = update({"a": {"w": g}}, state)
        _, new = SIGN.update(g, {"mu": old}, {}, np.asarray(t), hp, xp=np)
        bits = noise.random_bits(key, np.full(1, t, np.uint32), places, places * 0, xp=np)
        codes, scale = int4.encode(new["mu"], bits.reshape(shape), xp=np)
        old = int4.decode(codes, scale, shape, xp=np)
        np.testing.assert_array_equal(np.ravel(state.mu["a"]["w"]), np.ravel(codes))
        np.testing.assert_array_equal(np.ravel(state.mu_scale["a"]["w"]), np.ravel(scale))


def test_a_moment_in_8_bits_is_close_to_one_in_32():
    shape = (64, 256)
    small, large = (
        stam_jax.scale_by_sign_momentum(0.9, state_dtype=dtype) for dtype in ("int8", None)
    )
    states = [each.init({"w": jnp.zeros(shape)}) for each in (small, large)]
    for g in gradients(20, {"w": jnp.zeros(shape)}):
        states = [each.update(g, s)[1] for each, s in zip((small, large), states, strict=True)]
    flat = np.asarray(states[0].mu_scale["w"])
    decoded = int8.decode(np.asarray(states[0].mu["w"]), flat, xp=np)
    assert abs(decoded - np.asarray(states[1].mu["w"])).max() < 0.04


def test_a_bad_block_is_nan_and_the_others_are_not():
    transformation = stam_jax.scale_by_sign_momentum(0.5, state_dtype="int8")
    state = transformation.init({"w": jnp.zeros((64, 64))})
    g = jnp.ones((64, 64)).at[3, 5].set(jnp.nan)
    updates, state = transformation.update({"w": g}, state)
    updates, _ = transformation.update({"w": jnp.ones((64, 64))}, state)
    assert jnp.isnan(updates["w"][3]).all()
    assert (jnp.delete(updates["w"], 3, axis=0) == 1).all()


def llama_2_7b():
    width, inner, vocabulary = 4096, 11008, 32000
    layer = {
        **{f"attention_{name}": (width, width) for name in "qkvo"},
        **dict.fromkeys(("down",), (inner, width)),
        **dict.fromkeys(("gate", "up"), (width, inner)),
        **dict.fromkeys(("norm_1", "norm_2"), (width,)),
    }
    shapes = {"embedding": (vocabulary, width), "layers": [layer] * 32}
    shapes |= {"norm": (width,), "output": (width, vocabulary)}
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


@pytest.mark.parametrize(
    ("options", "bound"),
    [
        ({}, 2.04),
        ({"sign_state_dtype": "int8"}, 1.2),
        ({"sign_state_dtype": "int4", "adamw_state_dtype": "int8"}, 0.6),
    ],
)
def test_bytes_of_a_large_model(options, bound):
    params = llama_2_7b()
    roles = {k: "adamw" if k == "output" else "sign" for k in params}
    state = jax.eval_shape(stam_jax.stac(**options, partition=roles).init, params)
    entries, held = (
        sum(x.size * size(x) for x in jax.tree.leaves(tree))
        for tree, size in ((params, lambda _: 1), (state, lambda x: x.dtype.itemsize))
    )
    assert 6.7e9 < entries < 6.8e9
    assert held / entries <= bound + 1e-8  # The counters.


# Storage of the moments


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn"])
def test_a_moment_too_large_for_its_storage_is_the_largest(dtype):
    transformation = stam_jax.scale_by_sign_momentum(0.5, state_dtype=dtype)
    state = transformation.init({"w": jnp.zeros(2)})
    _, state = transformation.update({"w": jnp.asarray([3e38, -3e38])}, state)
    largest = min(float(jnp.finfo(dtype).max), 1.5e38)
    np.testing.assert_allclose(state.mu["w"].astype(jnp.float32), [largest, -largest], rtol=1e-2)


@pytest.mark.parametrize("code", ["int8", "int4"])
def test_codes_need_sizes(code):
    (n,) = jax.export.symbolic_shape("n")
    params = {"w": jax.ShapeDtypeStruct((n, 64), jnp.float32)}
    optimizer = stam_jax.stac(sign_state_dtype=code, partition=everywhere("sign"))
    with pytest.raises(ValueError, match=r"leaf 'w' has the symbolic shape .* take \"bfloat16\""):
        jax.eval_shape(optimizer.init, params)


def test_dtypes_are_the_same_after_each_step():
    params = {"a": {"w": jnp.ones((64, 64), jnp.bfloat16)}, "b": {"w": jnp.ones(3, jnp.float16)}}
    optimizer = stam_jax.stac(sign_state_dtype="int8", adamw_state_dtype="float32")
    state = optimizer.init(params)
    updates, new = optimizer.update(params, state, params)
    for before, after in ((state, new), (params, updates)):
        assert [x.dtype for x in jax.tree.leaves(before)] == [
            x.dtype for x in jax.tree.leaves(after)
        ]


# Stochastic rounding


def test_noise_is_that_of_the_reference():
    params = {"body": {"w": jnp.full((8, 100), 1.0, jnp.bfloat16)}}
    grads = [{"body": {"w": jnp.ones((8, 100), jnp.bfloat16)}}] * 3
    optimizer = stam_jax.stac(
        1e-3, partition=everywhere("sign"), stochastic_rounding=True, rounding_seed=5
    )
    p, _ = drive(optimizer, params, grads)
    expected = np.full(800, 1.0, np.float32)
    key = np.full(1, noise.noise_key(5, "body.w"), np.uint32)
    low = np.arange(800, dtype=np.uint32)
    for step in range(1, 4):
        bits = noise.random_bits(key, np.full(1, step, np.uint32), low, low * 0, xp=np)
        moved = (expected - np.float32(1e-3)).view(np.uint32) + bits
        expected = (moved & np.uint32(0xFFFF0000)).view(np.float32)
    np.testing.assert_array_equal(p["body"]["w"].astype(jnp.float32).ravel(), expected)
    assert len(set(expected.tolist())) > 1


def test_small_steps_are_kept_on_average_and_lost_without():
    params = {"w": jnp.full((64, 64), 1.0, jnp.bfloat16)}
    grads = [{"w": jnp.ones((64, 64), jnp.bfloat16)}] * 20
    means = []
    for rounding in (True, False):
        optimizer = stam_jax.stac(1e-4, partition=everywhere("sign"), stochastic_rounding=rounding)
        p, _ = drive(optimizer, params, grads)
        assert p["w"].dtype == jnp.bfloat16
        means.append(float(p["w"].astype(jnp.float32).mean()))
    assert means[0] == pytest.approx(1 - 20e-4, abs=3e-4)
    assert means[1] == 1.0


def test_positions_of_a_tensor_with_more_than_32_bits_of_entries():
    index = np.asarray([0, 1, 65535, 65536, 2**31 - 1, 2**32 - 1], np.uint32)
    for n in (1, 3, 65535, 65537, 2**31 + 7, 2**32 - 1):
        low, high = _product(jnp.asarray(index), n)
        exact = [int(i) * n for i in index]
        assert [int(x) for x in low] == [x & 0xFFFFFFFF for x in exact]
        assert [int(x) for x in high] == [x >> 32 for x in exact]
    low, high = positions((3, 4, 5))
    assert low.ravel().tolist() == list(range(60))
    assert not high.any()
    assert positions(())[0].tolist() == 0


# The partition


def layers(*names):
    return {name: {"w": jnp.zeros((2, 2))} for name in names}


def roles(partition, params):
    return {name: layer["w"] for name, layer in partition(params).items()}


@pytest.mark.parametrize(
    ("partition", "on_adamw"),
    [
        (stam_jax.LastLayers(), {"norm"}),
        (stam_jax.LastLayers(2), {"head", "norm"}),
        (stam_jax.LastLayers(9), {"b_0", "b_1", "head", "norm"}),
        (stam_jax.LastLayers(0), set()),
        (stam_jax.LastLayers(ratio=0.5), {"head", "norm"}),
        (stam_jax.LastLayers(ratio=0.01), {"norm"}),
        (stam_jax.LastLayers(0, adamw=["head"]), {"head"}),
        (stam_jax.LastLayers(0, adamw=["b_*"]), {"b_0", "b_1"}),
        (stam_jax.LastLayers(0, norms_on_adamw=True), {"norm"}),
        (stam_jax.LastLayers(2, sign=["norm"], norms_on_adamw=True), {"head"}),
    ],
)
def test_last_layers(partition, on_adamw):
    params = layers("head", "b_0", "norm", "b_1")
    assert {name for name, role in roles(partition, params).items() if role == "adamw"} == on_adamw


def test_a_pattern_takes_what_its_layer_contains():
    x = jnp.zeros(2)
    params = {"block": [{"mlp": {"w": x}, "norm": {"w": x}}] * 2, "z": {"w": x}}
    chosen = stam_jax.LastLayers(0, adamw=["block/1"])(params)
    assert chosen["block"] == [
        {"mlp": {"w": role}, "norm": {"w": role}} for role in ("sign", "adamw")
    ]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: stam_jax.LastLayers(-1), ValueError, r"count must be >= 0, got -1: 0 trains"),
        (lambda: stam_jax.LastLayers(1.0), TypeError, r"count must be an integer, got 1.0 \(float"),
        (lambda: stam_jax.LastLayers(ratio=0), ValueError, r"ratio must be in \(0, 1\], got 0"),
        (lambda: stam_jax.LastLayers(1, ratio=0.5), ValueError, "give count=1 or ratio=0.5"),
        (lambda: stam_jax.LastLayers(adamw="head"), TypeError, r"write \['head'\]"),
        (
            lambda: stam_jax.LastLayers(adamw=["tail"])(layers("head")),
            ValueError,
            r"adamw: 'tail' matches no layer; the layers are \['head'\]",
        ),
        (
            lambda: stam_jax.LastLayers(adamw=["a"], sign=["a"])(layers("a", "b")),
            ValueError,
            r"adamw and sign both name \['a'\]",
        ),
        (
            lambda: stam_jax.stac(partition={"body": "lion", "head": "adamw"}).init(PARAMS),
            ValueError,
            "a partition holds 'sign' or 'adamw', got 'lion'",
        ),
        (
            lambda: stam_jax.stac(partition={"body": "sign"}).init(PARAMS),
            ValueError,
            r"(?s)the partition does not fit the parameters .* give a role for every leaf",
        ),
        (
            lambda: stam_jax.stac(sign_momentum=1.0),
            ValueError,
            r"sign_momentum must be in \[0, 1\)",
        ),
        (
            lambda: stam_jax.stac(sign_state_dtype="int16"),
            ValueError,
            "state_dtype must be a float",
        ),
        (
            lambda: stam_jax.stac(sign_state_dtype="int3"),
            ValueError,
            "state_dtype must be .* got 'int3', which is no dtype; or a code, 'int8' or 'int4'",
        ),
        (
            lambda: stam_jax.stac(stochastic_rounding=True).update(
                PARAMS, stam_jax.stac(stochastic_rounding=True).init(PARAMS)
            ),
            ValueError,
            "params are missing, and stochastic rounding needs them",
        ),
    ],
)
def test_errors_say_what_to_do(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("partition", "scale"),
    [
        (None, 0.75),
        (stam_jax.LastLayers(1), 0.75),
        (stam_jax.LastLayers(0), 1.0),
        ({"body": "sign", "head": "adamw"}, 1.0),
    ],
)
def test_rate_of_the_sign_section(partition, scale):
    optimizer = stam_jax.stac(1.0, partition=partition)
    updates, _ = optimizer.update(gradients(1)[0], optimizer.init(PARAMS), PARAMS)
    np.testing.assert_allclose(jnp.abs(updates["body"]["w"]), scale, rtol=1e-6)


def test_schedules_and_injected_rates():
    by_schedule = stam_jax.stac(lambda count: 0.1 / (1 + count), weight_decay=lambda count: 0.1)
    injected = optax.inject_hyperparams(stam_jax.stac)(learning_rate=0.1, weight_decay=0.1)
    grads = gradients(1)
    (p, _), (q, _) = drive(by_schedule, PARAMS, grads), drive(injected, PARAMS, grads)
    for a, b in zip(jax.tree.leaves(p), jax.tree.leaves(q), strict=True):
        # Injected decays are float32 arrays, and 1 - b2 of one has lost digits.
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6)


@pytest.mark.parametrize("code", ["int8", "int4"])
def test_a_bad_gradient_leaves_everything_as_it_was(code):
    optimizer = stam_jax.stac(
        1e-2, weight_decay=0.1, sign_state_dtype=code, adamw_state_dtype="int8"
    )
    params = {"a": {"w": jnp.ones((64, 64))}, "b": {"v": jnp.ones((65, 65)), "w": jnp.ones(3)}}
    _, state = drive(optimizer, params, gradients(2, params))
    bad = {**params, "b": {"v": jnp.ones((65, 65)), "w": jnp.asarray([1.0, jnp.nan, 1.0])}}
    updates, new = optimizer.update(bad, state, params)
    assert not any(u.any() for u in jax.tree.leaves(updates))
    assert all_equal(state, new)


def test_a_state_is_stored_by_name_and_comes_back():
    optimizer = stam_jax.stac(1e-2, sign_state_dtype="int4", adamw_state_dtype="int8")
    params = {"a": {"w": jnp.ones((64, 64))}, "b": {"v": jnp.ones((65, 65)), "w": jnp.ones(3)}}
    _, state = drive(optimizer, params, gradients(3, params))
    saved = stam_jax.state_to_dict(state)
    assert saved["inner_states/sign/inner_state/0/mu/a/w"].shape == (64, 32)
    assert "inner_states/adamw/inner_state/0/nu_scale/b/v" in saved
    assert all_equal(state, stam_jax.state_from_dict(optimizer.init(params), saved))


def test_the_class_descends():
    optimizer = stam_jax.descent.STAC(learning_rate=0.1)
    updates, _ = optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS)
    assert (jnp.sign(updates["body"]["w"]) == jnp.sign(PARAMS["body"]["w"])).all()
