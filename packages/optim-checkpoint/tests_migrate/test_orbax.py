"""Orbax: trained in JAX, saved there, imported, gone on with here."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from optim_checkpoint import UnsupportedStateError
from optim_checkpoint import jax as ckpt
from optim_checkpoint.migrate import import_checkpoint

TX = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.linear_schedule(0.1, 0.0, 9)))


def start():
    params = {"dense": {"kernel": jnp.ones((4, 2)), "bias": jnp.zeros(2, jnp.bfloat16)}}
    return params, TX.init(params), jax.random.key(3)


@jax.jit
def step(params, opt_state, key):
    key, sub = jax.random.split(key)
    x = jax.random.normal(sub, (8, 4))
    dense = params["dense"]

    def loss(dense):
        return jnp.mean((x @ dense["kernel"] + dense["bias"]) ** 2)

    grads = {"dense": jax.grad(loss)(dense)}
    updates, opt_state = TX.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, key


def train(state):
    for _ in range(3):
        state = step(*state)
    return state


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("orbax") / "run"
    params, opt_state, key = state = train(start())
    tree = {"params": params, "opt_state": opt_state, "rng": key, "lr": 0.1}
    with ocp.CheckpointManager(folder) as manager:
        manager.save(3, args=ocp.args.StandardSave(tree))
        manager.wait_until_finished()
    return folder, train(state)


def bits(tree):
    def words(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf)

    return [words(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def test_a_run_of_orbax_goes_on_here(saved, tmp_path):
    folder, expected = saved
    params, opt_state, _ = start()
    template = {"opt_state": opt_state, "params": params}
    report = import_checkpoint(folder, tmp_path, template=template)
    assert (report.step, report.left_out) == (3, ())
    r = ckpt.restore(tmp_path, params=params, opt_state=opt_state)
    assert r.extra == {"lr": 0.1}
    resumed = train((r.params, r.opt_state, r.rng))
    assert jax.tree.structure(resumed) == jax.tree.structure(expected)
    assert bits(resumed) == bits(expected)


def test_without_a_template_only_what_needs_none_comes_along(saved, tmp_path):
    with pytest.raises(UnsupportedStateError, match="of which Orbax keeps no classes"):
        import_checkpoint(saved[0], tmp_path)
    report = import_checkpoint(saved[0] / "3" / "default", tmp_path, 3, leave_out=["opt_state"])
    assert report.left_out == ("opt_state: was to be left out",)
    assert bits(ckpt.restore(tmp_path, params=start()[0]).params)[1:] != bits(start()[0])[1:]


def test_a_template_of_another_shape_dtype_or_tree_is_refused(saved, tmp_path):
    params, opt_state, _ = start()
    for other, message in (
        ({"dense": {**params["dense"], "bias": jnp.zeros(3, jnp.bfloat16)}}, "template"),
        ({"dense": {**params["dense"], "bias": jnp.zeros(2)}}, "float32"),
        ({"dense": {**params["dense"], "more": jnp.zeros(2)}}, "dense.more is only in the templ"),
    ):
        template = {"opt_state": opt_state, "params": other}
        with pytest.raises(UnsupportedStateError, match=f"params does not fit: .*{message}"):
            import_checkpoint(saved[0], tmp_path, template=template)
