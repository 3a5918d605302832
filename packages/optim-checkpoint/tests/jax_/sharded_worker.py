"""Saves from eight host devices or restores on two; run by path with the mode and a folder."""

import os
import sys

devices = {"save": 8, "restore": 2}[sys.argv[1]]
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"

import jax  # noqa: E402 - the flag must be set first
import jax.numpy as jnp  # noqa: E402 - as above
import numpy as np  # noqa: E402 - as above
import optax  # noqa: E402 - as above
from optim_checkpoint import jax as ckpt  # noqa: E402 - as above

mesh = jax.sharding.Mesh(np.array(jax.devices()), ("d",))
rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d"))
expected = jnp.arange(64.0).reshape(16, 4)
params = {"w": jax.device_put(expected, rows), "b": jnp.ones(3)}
tx = optax.adam(1e-3)
state = tx.init(params)
if sys.argv[1] == "save":
    grads = {"w": params["w"] / 7, "b": params["b"]}
    _, state = tx.update(grads, state, params)
    ckpt.save(sys.argv[2], 1, params=params, opt_state=state)
else:
    found = ckpt.restore(sys.argv[2], params=params, opt_state=state)
    moments = found.opt_state[0].mu["w"]
    ok = (
        len(jax.devices()) == 2
        and found.params["w"].sharding == rows
        and moments.sharding == params["w"].sharding
        and bool((np.asarray(found.params["w"]) == np.asarray(expected)).all())
        and bool((np.asarray(moments) == np.asarray(expected / 7 * 0.1, np.float32)).all())
    )
    sys.exit(0 if ok else 4)
