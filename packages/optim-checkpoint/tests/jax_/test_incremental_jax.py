"""Incremental saves of a JAX training: frozen arrays are shared between steps."""

import jax
import jax.numpy as jnp
import optax
import optim_checkpoint as oc
import pytest
from optim_checkpoint import jax as ckpt


def state(step):
    params = {"frozen": jnp.arange(400_000.0), "head": jnp.full(3, step, jnp.bfloat16)}
    return params, optax.adam(1e-2).init({"head": params["head"]})


@pytest.mark.parametrize("background", [False, True])
def test_frozen_arrays_are_shared(tmp_path, background):
    with ckpt.AsyncCheckpointer(tmp_path, keep=2, incremental=True) as checkpointer:
        for step in (1, 2, 3):
            params, opt_state = state(step)
            saved = {"params": params, "opt_state": opt_state, "rng": jax.random.key(step)}
            if background:
                checkpointer.save(step, **saved)
                checkpointer.wait()
            else:
                ckpt.save(tmp_path, step, keep=2, incremental=True, **saved)
    assert oc.steps(tmp_path) == [2, 3]
    files = tmp_path.glob("step-00000003/model/*.safetensors")
    shared = [file.stat().st_size for file in files if file.stat().st_nlink == 2]
    assert sum(shared) > 1_600_000
    for step in (2, 3):
        params, opt_state = state(step)
        restored = ckpt.restore(tmp_path, step=step, params=params, opt_state=opt_state)
        assert jax.tree.all(jax.tree.map(jnp.array_equal, restored.params, params))
        assert restored.opt_state[0].count == 0
