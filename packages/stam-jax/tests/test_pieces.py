"""On a CPU |g - m| of a large leaf is stored piece by piece: in little memory, same sums."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import stam_jax
from stam_jax import _means

# Older compilers hold up to one copy of the parameters.
NEW_COMPILER = jax.__version_info__ >= (0, 12)
# Cut along the first axis, along a later one, with and without a rest, and not at all.
CASES = [
    ((64, 16), ()),
    ((61, 7), ()),
    ((3, 500), ()),
    ((1000,), ()),
    ((10, 10, 10), ()),
    ((50,), ()),
    ((4, 90, 3), (0,)),
    ((90, 4), (1,)),
    ((2, 300), (0, 1)),
    ((300, 1), (0,)),
]


def lowered(shapes):
    """Return the lowered step of abstract parameters: update and its application, donated."""
    optimizer = stam_jax.stam(1e-3)
    params = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]

    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(optimizer.init, params)
    return jax.jit(step, donate_argnums=(0, 1)).trace(params, state, params)


def test_temporaries_are_two_pieces_at_most_whatever_the_leaves():
    """Two where a leaf has two: the compiler unrolls the loop over them, and keeps both."""
    shapes = [(4096, 1024), (1024, 1024), (300, 3000), (3, 2_000_000)]
    memory = lowered(shapes).lower().compile().memory_analysis()
    assert memory is not None
    copy = sum(4 * np.prod(shape) for shape in shapes)
    allowed = 4 * 2.25 * _means.PIECE if NEW_COMPILER else 1.01 * copy
    assert memory.temp_size_in_bytes <= allowed, (memory.temp_size_in_bytes, allowed)


@pytest.mark.parametrize(("shape", "kept"), CASES)
def test_every_entry_is_summed_once(shape, kept, monkeypatch):
    monkeypatch.setattr(_means, "NOT_WORTH_STORING", 0)
    monkeypatch.setattr(_means, "PIECE", 100)
    monkeypatch.setattr(_means, "SHORTEST_STRETCH", 1)
    generator = np.random.default_rng(0)
    g, mu = (generator.standard_normal(shape, np.float32) for _ in range(2))
    average = _means.Average(kept, 1, None)

    @jax.jit
    def sums(g, mu, count):
        return _means.sums_of_stored(
            lambda g, mu: jnp.abs(g - mu),
            lambda r: (average.total(r * r), average.total(r)),
            [g, mu],
            kept,
            count,
        )

    axes = tuple(axis for axis in range(len(shape)) if axis not in kept)
    r = np.abs(g - mu)
    expected = [np.sum(x, axis=axes, keepdims=bool(kept)) for x in (r * r, r)]
    for found, wanted in zip(sums(g, mu, jnp.asarray(1)), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=2e-6)


@pytest.mark.parametrize(
    ("shape", "kept", "cut"),
    [
        ((4096, 1024), (), (0, 512)),
        ((3, 2_000_000), (), (1, 174_762)),
        ((12, 1024, 1024), (0,), (1, 42)),
        # Strips of 4 entries: cut so, a step took 93 ms instead of 21.
        ((128_000, 64), (0,), None),
        # The place of the last piece would not be a 32-bit integer.
        ((2**31 - 1,), (), (0, 2**19)),
        ((2**31,), (), None),
        ((4096, 1024), (0, 1), None),
        ((512, 1024), (), None),
    ],
)
def test_a_leaf_is_cut_where_its_pieces_are_long_and_can_be_addressed(shape, kept, cut):
    assert _means.piece_of(shape, kept) == cut


@pytest.mark.parametrize(("platform", "devices"), [("cpu", 1), ("cpu", 2), ("cuda", 1)])
def test_only_what_lies_on_one_cpu_is_cut(platform, devices, monkeypatch):
    """To cut a leaf that is spread over devices would gather it."""
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    jax.clear_caches()
    text = lowered([(1024, 1024)]).lower(lowering_platforms=(platform,)).as_text()
    assert ("stablehlo.while" in text) == (platform == "cpu" and devices == 1)
