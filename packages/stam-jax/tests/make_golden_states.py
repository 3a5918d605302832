"""Write the golden states of the current format: run once per format, never over an old file.

Each file holds the parameters and the state after 7 steps, the gradient of the eighth, and the
parameters after it.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import stam_jax

OPTIMIZERS = {
    "stam": stam_jax.stam(0.05),
    "stam_lite": stam_jax.stam_lite(0.05, moment_decay=0.9),
}


def main(folder):
    rng = np.random.default_rng(0)
    for name, optimizer in OPTIMIZERS.items():
        params = {"b": jnp.asarray([0.1, -0.4]), "w": jnp.asarray(rng.uniform(-1, 1, (3, 2)), "f4")}
        state = optimizer.init(params)
        for _ in range(7):
            grads = {k: jnp.asarray(rng.standard_normal(p.shape), "f4") for k, p in params.items()}
            updates, state = optimizer.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        saved = {f"state:{k}": v for k, v in stam_jax.state_to_dict(state).items()}
        saved |= {f"before:{k}": v for k, v in params.items()}
        grads = jax.tree.map(jnp.sin, params)
        updates, _ = optimizer.update(grads, state, params)
        saved |= {f"grads:{k}": v for k, v in grads.items()}
        saved |= {f"after:{k}": v for k, v in optax.apply_updates(params, updates).items()}
        path = Path(folder) / f"{name}-format{stam_jax.FORMAT_VERSION}.npz"
        if path.exists():
            raise FileExistsError(path)
        np.savez(path, **saved)


if __name__ == "__main__":
    main(sys.argv[1])
