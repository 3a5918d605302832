"""Checks of STAC's 8-bit moments on eight host devices, reported as run_sharded.py does.

python run_sharded_codes.py CHECK ...
"""

import sys

# First, because it sets the number of devices.
from run_sharded import check, difference, drive, gradient, main, mesh, shard_map, stay_in_place

# isort: split
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import stam_jax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

SHAPES = {
    "a": {"b": (300,), "v": (16, 5, 64), "w": (64, 300)},
    "m": {"small": (16, 5)},
    "z": {"w": (16, 8)},
}
ROWS = {
    "a": {"b": P(), "v": P("x", None, None), "w": P("x")},
    "m": {"small": P("x", None)},
    "z": {"w": P("x", None)},
}
CUT = {
    "a": {"b": P(), "v": P(None, None, "x"), "w": P()},
    "m": {"small": P(None, None)},
    "z": {"w": P(None, "x")},
}


def stac(rate, **options):
    return stam_jax.stac(rate, weight_decay=0.1, **{"sign_state_dtype": "int8", **options})


def four_bits(rate, **options):
    return stac(rate, **{**options, "sign_state_dtype": "int4"})


def by_sign():
    return stam_jax.scale_by_sign_momentum(state_dtype="int8")


def initial():
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.standard_normal(shape), jnp.float32),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )


@functools.cache
def on_one_device(make):
    optimizer = make(0.05)
    return drive(optimizer, initial(), optimizer.init(initial()))


def from_one_device(result, make):
    """Return the largest difference, if all codes are the same."""
    codes, others = [], []
    for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(on_one_device(make)), strict=True):
        (codes if a.dtype in (jnp.int8, jnp.uint8) else others).append((a, b))
    assert len(codes) == 2
    assert all(bool((np.asarray(a) == np.asarray(b)).all()) for a, b in codes)
    return max(difference(a, b) for a, b in others if a.size)


def on(the_mesh, specs, make, zero1_axis=None):
    """Drive moments in codes on a mesh, where no leaf may move."""
    optimizer = make(0.05)
    shardings = jax.tree.map(
        lambda spec: NamedSharding(the_mesh, spec), specs, is_leaf=lambda x: isinstance(x, P)
    )
    params = jax.device_put(initial(), shardings)
    tree = stam_jax.state_shardings(shardings, params, optimizer, zero1_axis=zero1_axis)
    state = jax.jit(optimizer.init, out_shardings=tree)(params)
    # The compiler of the oldest JAX moves replicated leaves of optax.adamw, too.
    told = zero1_axis is not None or not hasattr(jax, "set_mesh")
    result = drive(optimizer, params, state, (shardings, tree) if told else None)
    stay_in_place(result, (shardings, tree))
    return from_one_device(result, make)


@check
def rows_with_their_scales(make):
    """Rows stay where they are, and so do their scales."""
    sharding = NamedSharding(mesh(), P("x"))
    tree = stam_jax.state_shardings({"w": sharding}, {"w": jnp.zeros((64, 300))}, by_sign())
    assert tree.mu_scale["w"].spec == P("x")
    return on(mesh(), ROWS, make)


@check
def cut_rows(make):
    """The compiler puts a row together where it is free to."""
    return on(mesh(), CUT, make)


@check
def codes_by_zero1(make):
    """Codes and scales are spread over the rows of replicated parameters."""
    replicated = jax.tree.map(lambda _: P(), ROWS, is_leaf=lambda x: isinstance(x, P))
    return on(mesh(), replicated, make, zero1_axis="x")


@check
def codes_in_shard_map(make):
    """The specs of the parameters fit codes and scales."""
    if make is four_bits:
        return 0.0  # Its noise goes by the place in the part.
    optimizer, params = make(0.05, axis_name="x"), initial()
    state = optimizer.init(params)
    specs = optax.tree_utils.tree_map_params(
        optimizer,
        lambda buffer, spec: buffer if masked(buffer) else spec,
        state,
        ROWS,
        transform_non_params=lambda _: P(),
        is_leaf=masked,
    )

    def step(params, state, t):
        updates, state = optimizer.update(gradient(params, t), state, params)
        return optax.apply_updates(params, updates), state

    mapped = jax.jit(
        shard_map(step, mesh=mesh(), in_specs=(ROWS, specs, P()), out_specs=(ROWS, specs))
    )
    for t in range(5):
        params, state = mapped(params, state, t)
    return from_one_device((params, state), make)


def masked(x):
    return isinstance(x, optax.MaskedNode)


@check
def codes_on_an_explicit_mesh(make):
    """Rows work as anywhere, inside ``jax.set_mesh`` and outside."""
    if not hasattr(jax, "set_mesh"):
        raise LookupError("this JAX has no jax.set_mesh")
    the_mesh = mesh(AxisType.Explicit)
    with jax.set_mesh(the_mesh):
        inside = on(the_mesh, ROWS, make)
    return max(inside, on(the_mesh, ROWS, make))


@check
def cut_rows_on_an_explicit_mesh(make):
    """A cut row is refused by the name of its leaf."""
    the_mesh = mesh(AxisType.Explicit)
    cut = jax.device_put(jnp.zeros((16, 5, 64)), NamedSharding(the_mesh, P(None, None, "x")))
    whole = by_sign().init({"v": jnp.zeros((16, 5, 64))})
    for refused in (
        lambda: by_sign().init({"v": cut}),
        lambda: jax.jit(by_sign().update)({"v": cut}, whole),
        lambda: make(0.05).init({"v": cut, "z": {"w": jnp.zeros(3)}}),
    ):
        with pytest.raises(ValueError, match=r"leaf 'v' is sharded as .* shard it along dim"):
            refused()
    return 0.0


if __name__ == "__main__":
    main(sys.argv[1:], {"stac": stac, "four_bits": four_bits})
