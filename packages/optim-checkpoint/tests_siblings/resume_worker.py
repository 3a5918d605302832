"""Trains or resumes STAC, STAM and STAMLite; prints the bits each run ends with as JSON.

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
import optim_checkpoint.jax
import optim_checkpoint.torch
import stac_torch
import stam_jax
import torch

BEFORE, AFTER = 7, 20
TORCH = {
    "STAC": (torch.float32, {}),
    "STAC bfloat16 state": (torch.float32, {"sign_state_dtype": "bf16"}),
    "STAC float32 state of bfloat16": (
        torch.bfloat16,
        {"sign_state_dtype": torch.float32, "adamw_state_dtype": torch.float32},
    ),
    "STAC int8 state": (torch.float32, {"sign_state_dtype": "int8"}),
    "STAC int4 state": (torch.float32, {"sign_state_dtype": "int4"}),
    "STAC amsgrad, two layers": (torch.float32, {"last_n_layers": 2, "amsgrad": True}),
    "STAC without momentum": (torch.float32, {"sign_momentum": 0.0}),
}
JAX = {
    "STAM": lambda: stam_jax.stam(1e-2),
    "STAM bfloat16 mu": lambda: stam_jax.stam(1e-2, mu_dtype=jnp.bfloat16),
    "STAM corrected": lambda: stam_jax.stam(1e-2, statistics="corrected"),
    "STAM along axes": lambda: stam_jax.scale_by_stam(stat_axes=lambda path, leaf: (0,)),
    "STAM in a chain": lambda: optax.chain(
        optax.clip(1.0), stam_jax.scale_by_stam(), optax.scale(-1e-2)
    ),
    "STAM on some leaves": lambda: optax.multi_transform(
        {"m": stam_jax.stam(1e-2), "v": optax.sgd(1e-2)},
        lambda p: jax.tree.map(lambda x: "m" if x.ndim > 1 else "v", p),
    ),
    "STAMLite": lambda: stam_jax.stam_lite(1e-2),
    "STAMLite bfloat16": lambda: stam_jax.stam_lite(1e-2, state_dtype=jnp.bfloat16),
}


def torch_case(name, mode, folder):
    torch.manual_seed(0)
    dtype, options = TORCH[name]
    model = torch.nn.Sequential(
        torch.nn.Linear(6, 80), torch.nn.Tanh(), torch.nn.Linear(80, 80), torch.nn.Linear(80, 2)
    ).to(dtype)
    optimizer = stac_torch.STAC(model, lr=1e-2, **options)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)

    def train(steps):
        for _ in range(steps):
            x = torch.randn(8, 6).to(dtype)
            optimizer.zero_grad()
            (model(x) - x[:, :2]).square().mean().backward()
            optimizer.step()
            scheduler.step()

    state = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    if mode == "train":
        train(BEFORE)
        optim_checkpoint.torch.save(folder, BEFORE, **state)
    else:
        optim_checkpoint.torch.restore(folder, **state)

    def fingerprint():
        digest = hashlib.sha256()
        slots = [v for p in model.parameters() for v in optimizer.state.get(p, {}).values()]
        for value in [*model.state_dict().values(), *slots]:
            if isinstance(value, torch.Tensor):
                digest.update(str(value.dtype).encode())
                digest.update(value.detach().reshape(-1).view(torch.uint8).numpy().tobytes())
            else:
                digest.update(repr(value).encode())
        return digest.hexdigest()

    start = fingerprint()
    train(AFTER)
    return {"start": start, "end": fingerprint()}


@jax.jit
def gradient(params, key):
    """Draw a batch; one compilation serves every case, and takes longer than most updates."""
    key, sub = jax.random.split(key)
    x = jax.random.normal(sub, (8, 6))

    def loss(p):
        h = jnp.tanh(x @ p["a"]["w"].astype(jnp.float32) + p["a"]["b"])
        return jnp.mean((h @ p["z"] - x[:, :2]) ** 2)

    return jax.grad(loss)(params), key


def jax_case(name, mode, folder):
    tx = JAX[name]()
    low = jnp.bfloat16 if "bfloat16" in name else jnp.float32
    params = {"a": {"w": jnp.ones((6, 4), low), "b": jnp.zeros(4)}, "z": jnp.ones((4, 2))}
    state, key = tx.init(params), jax.random.key(0)

    @jax.jit
    def update(grads, params, state):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def step(params, state, key):
        grads, key = gradient(params, key)
        return *update(grads, params, state), key

    if mode == "train":
        for _ in range(BEFORE):
            params, state, key = step(params, state, key)
        optim_checkpoint.jax.save(folder, BEFORE, params=params, opt_state=state, rng=key)
    else:
        found = optim_checkpoint.jax.restore(folder, params=params, opt_state=state)
        params, state, key = found.params, found.opt_state, found.rng

    def fingerprint():
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves((params, state, jax.random.key_data(key))):
            digest.update(f"{leaf.dtype}{leaf.shape}".encode() + np.asarray(leaf).tobytes())
        return digest.hexdigest()

    start = fingerprint()
    for _ in range(AFTER):
        params, state, key = step(params, state, key)
    return {"start": start, "end": fingerprint()}


def main():
    """Run all cases."""
    warnings.simplefilter("error")
    mode, root = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    results = {name: torch_case(name, mode, root / f"t{i}") for i, name in enumerate(TORCH)}
    results |= {name: jax_case(name, mode, root / f"j{i}") for i, name in enumerate(JAX)}
    sys.stdout.write(json.dumps(results))


if __name__ == "__main__":
    main()
