"""One of two processes with one mesh over loopback; prints how far both are from a single one."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import stam_jax
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P


def drive(optimizer, params, state):
    @jax.jit
    def step(params, state, t):
        grads = jax.tree.map(lambda p: jnp.sin(3 * p + t) * (1 + p), params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for t in range(5):
        params, state = step(params, state, t)
    return params, state


def main(port, rank):
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=rank)
    mesh = jax.make_mesh((jax.device_count(),), ("x",))
    full = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
    worst = 0.0
    for make in (stam_jax.stam, stam_jax.stam_lite):
        optimizer = make(0.05)
        shardings = {"w": NamedSharding(mesh, P("x", None))}
        params = {"w": jax.make_array_from_callback(full.shape, shardings["w"], lambda i: full[i])}
        tree = stam_jax.state_shardings(shardings, params, optimizer)
        state = jax.jit(optimizer.init, out_shardings=tree)(params)
        shared, shared_state = drive(optimizer, params, state)
        alone, alone_state = drive(optimizer, {"w": full}, optimizer.init({"w": full}))
        whole = multihost_utils.process_allgather(shared["w"], tiled=True)
        worst = max(
            worst,
            float(np.abs(whole - np.asarray(alone["w"])).max()),
            float(np.abs(np.asarray(shared_state[0].beta1) - alone_state[0].beta1).max()),
        )
    print(json.dumps({"devices": jax.device_count(), "difference": worst}))  # noqa: T201
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
