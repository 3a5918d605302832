"""One of two JAX processes that go on with STAM and STAMLite, for `test_sharded_siblings.py`.

Run by path: ``process_worker.py PORT RANK FOLDER``.
"""

import json
import signal
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optim_checkpoint.jax
import stam_jax
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

STEPS = 3
CASES = {
    "STAM": lambda: stam_jax.stam(1e-2),
    "STAMLite bfloat16": lambda: stam_jax.stam_lite(1e-2, state_dtype=jnp.bfloat16),
}


def fresh():
    """Return parameters as NumPy arrays."""
    rng = np.random.default_rng(0)
    return {
        "a": {"w": rng.standard_normal((8, 3)).astype(np.float32)},
        "b": rng.standard_normal(4).astype(np.float32),
        "n": rng.standard_normal(3).astype(np.float32),
    }


def specs(mesh):
    rows, whole = NamedSharding(mesh, P("x")), NamedSharding(mesh, P())
    return {"a": {"w": NamedSharding(mesh, P("x", None))}, "b": rows, "n": whole}


def train(tx, params, state):
    @jax.jit
    def step(params, state):
        grads = jax.tree.map(lambda p: p * 0.5 - 0.25, params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(STEPS):
        params, state = step(params, state)
    return params, state


def leaves(tree):
    """Return every leaf whole, as a list of numbers with its dtype."""
    found = []
    for leaf in jax.tree.leaves(tree):
        whole = leaf
        if not leaf.is_fully_addressable:
            whole = multihost_utils.process_allgather(leaf, tiled=True)
        found.append([str(leaf.dtype), np.asarray(whole).astype(np.float64).tolist()])
    return found


def main(port, rank, folder):
    """Run one process."""
    signal.alarm(120)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=rank)
    mesh = jax.make_mesh((jax.device_count(),), ("x",))
    result = {}
    for number, (name, make) in enumerate(CASES.items()):
        tx = make()
        zeros = jax.tree.map(np.zeros_like, fresh())
        params = jax.tree.map(
            lambda x, s: jax.make_array_from_callback(x.shape, s, lambda i: x[i]),
            zeros,
            specs(mesh),
        )
        tree = stam_jax.state_shardings(specs(mesh), params, tx)
        state = jax.jit(tx.init, out_shardings=tree)(params)
        found = optim_checkpoint.jax.restore(
            folder / f"one{number}", params=params, opt_state=state
        )
        result[name] = {"start": leaves((found.params, found.opt_state))}
        params, state = train(tx, found.params, found.opt_state)
        result[name]["end"] = leaves((params, state))
        optim_checkpoint.jax.save(folder / f"two{number}", 2, params=params, opt_state=state)
    (folder / f"result{rank}.json").write_text(json.dumps(result))
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
