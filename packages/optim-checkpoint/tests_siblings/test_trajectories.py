"""The same gradients move the same parameters alike in both frameworks, fifty steps long."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import stac_torch
import stam_jax
import torch

STEPS, RATE, BOUND = 50, 1e-3, 1e-6
# The second has an int8 code of two blocks in a row; STAC's last layer is the head.
SHAPES = {
    "body.bias": (16,),
    "body.weight": (16, 300),
    "cube.weight": (3, 5, 4),
    "head.weight": (7, 16),
}
OPTIMIZERS = {
    "STAM": ("STAM", "stam", {}),
    "STAM corrected": ("STAM", "stam", {"statistics": "corrected"}),
    "STAM of samples": ("STAM", "stam", {"stat_sample": 100}),
    "STAMLite": ("STAMLite", "stam_lite", {}),
    "STAC": ("STAC", "stac", {"weight_decay": 0.01}),
    "STAC int8": ("STAC", "stac", {"weight_decay": 0.01, "sign_state_dtype": "int8"}),
    "STAC int4": ("STAC", "stac", {"weight_decay": 0.01, "sign_state_dtype": "int4"}),
}


def gradients():
    """Yield noise around a drift, of another size per tensor, sometimes sparse, sometimes small."""
    rng = np.random.default_rng(5)
    for t in range(STEPS):
        size = 10.0 ** rng.uniform(-3, 1)
        yield {
            name: (size * (i + 1) * (rng.standard_normal(shape) + 0.3)).astype(np.float32)
            * (rng.random(shape) < (0.2 if t % 7 == 3 else 1.0))
            for i, (name, shape) in enumerate(SHAPES.items())
        }


def start():
    rng = np.random.default_rng(4)
    return {name: rng.uniform(-1, 1, s).astype(np.float32) for name, s in SHAPES.items()}


def torch_run(name, options, foreach):
    """Yield parameters, and moments with scales, after every step."""
    leaves = {k: torch.nn.Parameter(torch.from_numpy(v)) for k, v in start().items()}
    groups = list(leaves.items())
    if name == "STAC":
        head = [(k, p) for k, p in groups if k.startswith("head")]
        body = [(k, p) for k, p in groups if not k.startswith("head")]
        groups = [{"params": body, "role": "sign"}, {"params": head, "role": "adamw"}]
        options = {**options, "sign_lr_scale": 0.75}
    optimizer = getattr(stac_torch, name)(groups, lr=RATE, foreach=foreach, **options)
    for grads in gradients():
        for leaf, g in grads.items():
            leaves[leaf].grad = torch.from_numpy(g)
        optimizer.step()
        yield (
            {k: p.detach().numpy() for k, p in leaves.items()},
            {
                f"{key}/{leaf}": value.numpy()
                for leaf, p in leaves.items()
                for key, value in optimizer.state[p].items()
                if key.startswith("exp_avg")
            },
        )


def jax_run(name, options):
    """Do as `torch_run`; scales in torch's shape."""
    if name == "stac":
        roles = {k: dict.fromkeys(v, "adamw" if k == "head" else "sign") for k, v in tree().items()}
        options = {**options, "partition": roles, "sign_lr_scale": 0.75}
    tx = getattr(stam_jax, name)(RATE, **options)
    params = tree(start())
    state = tx.init(params)
    step = jax.jit(tx.update)
    names = {"mu": "exp_avg", "nu": "exp_avg_sq", "mu_scale": "exp_avg_scale"}
    for grads in gradients():
        updates, state = step(tree(grads), state, params)
        params = optax.apply_updates(params, updates)
        moments = {}
        for key, value in stam_jax.state_to_dict(state).items():
            parts = key.split("/")
            if len(parts) >= 3 and parts[-3] in names and value.size:
                two = parts[-3] == "mu_scale" or value.dtype == np.uint8
                flat = value.reshape(len(value), -1) if two else value
                moments[f"{names[parts[-3]]}/{parts[-2]}.{parts[-1]}"] = flat
        yield {f"{a}.{b}": np.asarray(x) for a, v in params.items() for b, x in v.items()}, moments


def tree(flat=None):
    """Return a nested tree of what stands under dotted names, the shapes unless given."""
    nested = {}
    for name, value in (SHAPES if flat is None else flat).items():
        layer, _, leaf = name.partition(".")
        nested.setdefault(layer, {})[leaf] = jnp.asarray(value) if flat is not None else value
    return nested


def off(one, other):
    """Return the distance over the length: single entries are random walks of roundings."""
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


@pytest.mark.parametrize("foreach", [False, True], ids=["loop", "foreach"])
@pytest.mark.parametrize("case", OPTIMIZERS)
def test_fifty_steps_agree(case, foreach):
    in_torch, in_jax, options = OPTIMIZERS[case]
    both = zip(torch_run(in_torch, options, foreach), jax_run(in_jax, options), strict=True)
    for t, ((params, moments), (expected, others)) in enumerate(both, start=1):
        assert params.keys() == expected.keys()
        assert moments.keys() == others.keys()
        for name, value in params.items():
            assert off(value, expected[name]) <= BOUND, f"{name} after step {t}"
        coded = {name.partition("/")[2] for name in moments if name.startswith("exp_avg_scale")}
        assert coded == ({"body.weight"} if "sign_state_dtype" in options else set())
        for name, value in moments.items():
            if name.partition("/")[2] in coded:
                # A sign forgives nothing: codes and scales have the same bits.
                assert value.dtype == others[name].dtype, name
                assert value.tobytes() == others[name].tobytes(), f"{name} after step {t}"
            else:
                assert off(value, others[name]) <= BOUND, f"{name} after step {t}"
    assert t == STEPS
