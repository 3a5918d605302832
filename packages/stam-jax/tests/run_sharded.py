"""Checks on eight host devices; prints one JSON object: check -> largest difference, or an error.

    python run_sharded.py CHECK ...

Run in a process of its own, because the number of devices is fixed when JAX starts.
"""

import contextlib
import functools
import json
import os
import sys
import traceback

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
import optax
import stam_jax
import stam_jax._means
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

MAKERS = {"stam": stam_jax.stam, "stam_lite": stam_jax.stam_lite}
# Two leaves of one type share a batch; one of the same shape, replicated, is of the same type only
# where sharding is no part of the type.
SPECS = {"b": P("x"), "emb": P(None, "x"), "r": P(None, None), "v": P("x", None), "w": P("x", None)}
SHAPES = {"b": (16,), "emb": (6, 24), "r": (32, 5), "v": (32, 5), "w": (32, 5)}
CHECKS = {}
# Leaves of test size take the path of large ones.
stam_jax._means.NOT_WORTH_STORING = 0
shard_map = getattr(jax, "shard_map", None)
if shard_map is None:
    from jax.experimental.shard_map import shard_map


def check(f):
    CHECKS[f.__name__] = f
    return f


def mesh(kind=AxisType.Auto):
    return jax.make_mesh((8,), ("x",), axis_types=(kind,))


def initial():
    rng = np.random.default_rng(0)
    return {k: jnp.asarray(rng.standard_normal(s), jnp.float32) for k, s in SHAPES.items()}


def gradient(params, t):
    return jax.tree.map(lambda p: jnp.sin(3 * p + t) * (1 + p), params)


def drive(optimizer, params, state, shardings=None, steps=5):
    def step(params, state, t):
        updates, state = optimizer.update(gradient(params, t), state, params)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step, out_shardings=shardings)
    for t in range(steps):
        params, state = compiled(params, state, t)
    return params, state


def difference(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.abs(np.asarray(x, float) - np.asarray(y, float)).max()) for x, y in pairs)


@functools.cache
def on_one_device(make):
    params = initial()
    optimizer = make(0.05)
    return drive(optimizer, params, optimizer.init(params))


def place(the_mesh, specs):
    shardings = {k: NamedSharding(the_mesh, spec) for k, spec in specs.items()}
    return jax.device_put(initial(), shardings), shardings


@check
def fully_sharded(make):
    params, shardings = place(mesh(), SPECS)
    optimizer = make(0.05)
    tree = stam_jax.state_shardings(shardings, params, optimizer)
    state = jax.jit(optimizer.init, out_shardings=tree)(params)
    # The compiler of the oldest JAX moves replicated leaves of optax.adamw, too.
    given = None if hasattr(jax, "set_mesh") else (shardings, tree)
    result = drive(optimizer, params, state, given)
    stay_in_place(result, (shardings, tree))
    return difference(result, on_one_device(make))


def stay_in_place(result, shardings):
    pairs = zip(jax.tree.leaves(result), jax.tree.leaves(shardings), strict=True)
    moved = [
        (x.shape, x.sharding, s) for x, s in pairs if not x.sharding.is_equivalent_to(s, x.ndim)
    ]
    assert not moved, moved


def rows(path, leaf):
    return (0,) if leaf.ndim > 1 else ()


@check
def rows_kept_apart_stay_replicated(make):
    """The statistics of a spread axis are as spread as it is, and what is stored of them is not."""
    the_mesh = mesh()
    params = {"v": jax.device_put(initial()["v"], NamedSharding(the_mesh, P("x", None)))}
    optimizer = make(0.05, stat_axes=rows)
    shardings = {"v": params["v"].sharding}
    tree = stam_jax.state_shardings(shardings, params, optimizer)
    state = jax.jit(optimizer.init, out_shardings=tree)(params)
    stay_in_place(drive(optimizer, params, state), (shardings, tree))
    return 0.0


@check
def explicit_mesh_samples_and_axes(make):
    if not hasattr(jax, "set_mesh"):
        raise LookupError("this JAX has no jax.set_mesh")
    the_mesh, worst = mesh(AxisType.Explicit), 0.0
    try:
        jax.jit(lambda tree: jax.tree.map(jnp.zeros_like, tree))(place(the_mesh, SPECS)[0])
        ways = (True, False)
    except ValueError:  # Some releases run nothing on such a mesh unless it was entered.
        ways = (True,)
    for options in (
        {"stat_sample": 16},
        {"stat_axes": rows},
        {"stat_axes": rows, "stat_sample": 3},
    ):
        optimizer, params = make(0.05, **options), initial()
        expected = drive(optimizer, params, optimizer.init(params), steps=2)
        for entered in ways:
            params, _ = place(the_mesh, SPECS)
            with jax.set_mesh(the_mesh) if entered else contextlib.nullcontext():
                state = jax.jit(optimizer.init)(params)
                result = drive(optimizer, params, state, steps=2)
            stay_in_place(
                (result[0], result[1][0].mu), (jax.tree.map(lambda p: p.sharding, params),) * 2
            )
            worst = max(worst, difference(result, expected))
    return worst


@check
def shard_map_over_two_axes(make):
    """A leaf may be spread along one of the mapped axes, along both or along none."""
    the_mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    specs = {
        "b": P("x"),
        "emb": P(None, ("x", "y")),
        "r": P(),
        "v": P("x", None),
        "w": P("y", None),
    }
    result = in_shard_map(
        make(0.05, axis_name=("x", "y"), nonfinite="skip"), the_mesh, specs, initial()
    )
    return difference(result, on_one_device(make))


@check
def zero1(make):
    params, shardings = place(mesh(), dict.fromkeys(SPECS, P()))
    optimizer = make(0.05)
    tree = stam_jax.state_shardings(shardings, params, optimizer, zero1_axis="x")
    # emb is (6, 24): its first dimension is not divisible by 8, so the second is spread.
    specs = {name: sharding.spec for name, sharding in tree[0].mu.items()}
    rows = P("x", None)
    assert specs == {"b": P("x"), "emb": P(None, "x"), "r": rows, "v": rows, "w": rows}, specs
    state = jax.jit(optimizer.init, out_shardings=tree)(params)
    result = drive(optimizer, params, state, (shardings, tree))
    shard = result[1][0].mu["w"].addressable_shards[0].data.shape
    assert shard == (4, 5), shard
    return difference(result, on_one_device(make))


@check
def explicit_mesh(make):
    if not hasattr(jax, "set_mesh"):
        raise LookupError("this JAX has no jax.set_mesh")
    the_mesh = mesh(AxisType.Explicit)
    with jax.set_mesh(the_mesh):
        params, _ = place(the_mesh, SPECS)
        optimizer = make(0.05)
        state = jax.jit(optimizer.init)(params)
        assert jax.typeof(state[0].mu["w"]).sharding.spec == P("x", None)
        result = drive(optimizer, params, state)
        assert jax.typeof(result[0]["w"]).sharding.spec == P("x", None)
        result = jax.tree.map(np.asarray, result)
    return difference(result, on_one_device(make))


@check
def map_params_specs(make):
    """The flow of users who shard state by a tree of specs mapped over the parameters."""
    the_mesh = mesh()
    params, shardings = place(the_mesh, SPECS)
    optimizer = make(0.05)
    state = optimizer.init(params)
    replicated = NamedSharding(the_mesh, P())
    tree = optax.tree_utils.tree_map_params(
        optimizer, lambda _, s: s, state, shardings, transform_non_params=lambda _: replicated
    )
    result = drive(optimizer, params, jax.device_put(state, tree), (shardings, tree))
    return difference(result, on_one_device(make))


def in_shard_map(optimizer, the_mesh, specs, params):
    state_specs = optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, spec: spec,
        jax.eval_shape(optimizer.init, params),
        specs,
        transform_non_params=lambda _: P(),
    )
    state = optimizer.init(params)

    def step(params, state, t):
        updates, state = optimizer.update(gradient(params, t), state, params)
        return optax.apply_updates(params, updates), state

    mapped = jax.jit(
        shard_map(
            step,
            mesh=the_mesh,
            in_specs=(specs, state_specs, P()),
            out_specs=(specs, state_specs),
        )
    )
    for t in range(5):
        params, state = mapped(params, state, t)
    return params, state


@check
def shard_map_with_axis_name(make):
    result = in_shard_map(make(0.05, axis_name="x"), mesh(), SPECS, initial())
    return difference(result, on_one_device(make))


@check
def shard_map_skips_on_all_shards(make):
    """A NaN on one shard leaves the step out on all of them."""
    the_mesh, params = mesh(), initial()
    optimizer = make(0.05, axis_name="x", nonfinite="skip")
    grads = {**params, "b": params["b"].at[13].set(jnp.nan)}
    update = shard_map(
        lambda g, p: optimizer.update(g, optimizer.init(p), p)[0],
        mesh=the_mesh,
        in_specs=(SPECS, SPECS),
        out_specs=SPECS,
    )
    return difference(jax.jit(update)(grads, params), jax.tree.map(jnp.zeros_like, params))


@check
def shard_map_without_axis_name_is_refused(make):
    try:
        in_shard_map(make(0.05), mesh(), SPECS, initial())
    except ValueError as error:
        refusal = str(error)
    else:
        refusal = "local statistics were accepted as replicated"
    assert "replication" in refusal or "varying" in refusal, refusal
    return 0.0


@check
def rounding_does_not_depend_on_sharding(make):
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), initial())
    updates = jax.tree.map(lambda p: 1e-3 * p.astype(jnp.float32), params)
    key = jax.random.key(3)
    sharded = jax.device_put(params, {k: NamedSharding(mesh(), s) for k, s in SPECS.items()})
    apply = jax.jit(stam_jax.apply_updates)
    return difference(apply(sharded, updates, key), apply(params, updates, key))


def main(names, makers=MAKERS):
    report = {}
    for name in names:
        for kind, make in makers.items():
            try:
                report[f"{name}-{kind}"] = CHECKS[name](make)
            except Exception:  # noqa: BLE001 (reported, and failed on, by the test)
                report[f"{name}-{kind}"] = traceback.format_exc()[-1500:]
    print(json.dumps(report))  # noqa: T201


if __name__ == "__main__":
    assert isinstance(mesh(), Mesh)
    assert jax.device_count() == 8
    main(sys.argv[1:])
