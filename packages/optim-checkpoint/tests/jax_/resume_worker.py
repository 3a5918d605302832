"""Trains every optax case, or resumes it in a fresh process; prints the bits it ends with as JSON.

Run by path: ``resume_worker.py train|resume FOLDER``.
"""

import hashlib
import json
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optim_checkpoint import jax as ckpt

BEFORE, AFTER = 7, 20


def labels(params):
    return jax.tree.map(lambda x: "matrix" if x.ndim > 1 else "vector", params)


def mask(params):
    return jax.tree.map(lambda x: x.ndim > 1, params)


cosine = optax.warmup_cosine_decay_schedule(0.0, 1e-2, 5, 40)
CASES = {
    "sgd with momentum": lambda: optax.sgd(1e-2, momentum=0.9, nesterov=True),
    "adam": lambda: optax.adam(1e-2),
    "adamw with a schedule": lambda: optax.adamw(cosine),
    "adamw, float32 moments": lambda: optax.adamw(1e-2, mu_dtype=jnp.float32),
    "lion": lambda: optax.lion(1e-3),
    "adafactor": lambda: optax.adafactor(1e-2, min_dim_size_to_factor=2),
    "chain with clipping": lambda: optax.chain(
        optax.clip_by_global_norm(1.0), optax.scale_by_adam(), optax.scale_by_schedule(cosine)
    ),
    "masked": lambda: optax.chain(optax.masked(optax.scale_by_adam(), mask), optax.scale(-1e-2)),
    "multi_transform": lambda: optax.multi_transform(
        {"matrix": optax.adamw(1e-2), "vector": optax.sgd(1e-2, momentum=0.9)}, labels
    ),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adamw)(learning_rate=cosine),
    "MultiSteps": lambda: optax.MultiSteps(optax.adam(1e-2), 3),
    "noise": lambda: optax.chain(optax.add_noise(0.1, 0.5, 4), optax.sgd(1e-2)),
}
if hasattr(optax.contrib, "muon"):  # optax 0.2.5 brought it.
    CASES["muon"] = lambda: optax.contrib.muon(1e-2)


def initial(name):
    k1, k2 = jax.random.split(jax.random.key(0))
    low = jnp.float32 if name == "muon" else jnp.bfloat16
    return {
        "dense": {"w": jax.random.normal(k1, (6, 4)).astype(low), "b": jnp.zeros(4)},
        "out": [jax.random.normal(k2, (4, 3)), jnp.zeros(3)],
    }


@jax.jit
def gradient(params, key):
    """Draw a batch; one compilation serves every case, and takes longer than most updates."""
    key, sub = jax.random.split(key)
    x = jax.random.normal(sub, (8, 6))

    def loss(p):
        h = jnp.tanh(x @ p["dense"]["w"].astype(jnp.float32) + p["dense"]["b"])
        return jnp.mean((h @ p["out"][0] + p["out"][1] - x[:, :3]) ** 2)

    return jax.grad(loss)(params), key


def make_step(tx):
    @jax.jit
    def update(grads, params, state):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def step(params, state, key):
        grads, key = gradient(params, key)
        return *update(grads, params, state), key

    return step


def train(step, params, state, key, steps):
    for _ in range(steps):
        params, state, key = step(params, state, key)
    return params, state, key


def fingerprint(*trees):
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(trees):
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        weak = getattr(leaf, "weak_type", None)
        array = np.asarray(leaf)
        digest.update(f"{type(leaf).__name__}{array.dtype}{array.shape}{weak}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def main():
    """Run all cases."""
    warnings.simplefilter("error")
    mode, root = sys.argv[1], Path(sys.argv[2])
    results = {}
    for i, (name, make) in enumerate(CASES.items()):
        folder, tx = root / f"case{i}", make()
        params = initial(name)
        state, step = tx.init(params), make_step(tx)
        if mode == "train":
            params, state, key = train(step, params, state, jax.random.key(i), BEFORE)
            ckpt.save(folder, BEFORE, params=params, opt_state=state, rng=key)
        else:
            template = state
            if name == "inject_hyperparams":
                # Its hyperparameters are float32 arrays, which widen the moments at the first step.
                _, template = jax.eval_shape(tx.update, params, state, params)
            found = ckpt.restore(folder, params=params, opt_state=template)
            if found.step != BEFORE:
                raise SystemExit(f"{name}: step {found.step}")
            params, state, key = found.params, found.opt_state, found.rng
        start = fingerprint(params, state, key)
        params, state, key = train(step, params, state, key, AFTER)
        results[name] = {"start": start, "end": fingerprint(params, state, key)}
    sys.stdout.write(json.dumps(results))


if __name__ == "__main__":
    main()
