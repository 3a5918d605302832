"""STAM, STAMLite and STAC move between torch and JAX with every bit, and go on as if at home."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optim_checkpoint as oc
import optim_checkpoint.jax
import optim_checkpoint.torch
import pytest
import stac_torch
import stam_jax
import torch

# One matrix has an int8 code, of two blocks in a row; the last layer is on AdamW in STAC.
SHAPES = {
    "body": {"bias": (16,), "weight": (16, 300)},
    "cube": {"weight": (16, 10, 30)},
    "head": {"weight": (3, 5)},
}
RATE = 1e-2
SCALE = "exp_avg_scale"


def stam(**options):
    return (
        lambda model: stac_torch.STAM(model.named_parameters(), lr=RATE, **options),
        lambda: stam_jax.stam(RATE, **options),
    )


def stam_lite(**options):
    return (
        lambda model: stac_torch.STAMLite(model.named_parameters(), lr=RATE, **options),
        lambda: stam_jax.stam_lite(RATE, **options),
    )


def stac(**options):
    return (
        lambda model: stac_torch.STAC(model, lr=RATE, weight_decay=0.1, **options),
        lambda: stam_jax.stac(RATE, weight_decay=0.1, **options),
    )


def all_in_codes(**options):
    codes = {"sign_state_dtype": "int4", "adamw_state_dtype": "int8", "weight_decay": 0.1}
    return (
        lambda model: stac_torch.STAC(model, lr=RATE, last_n_layers=2, **codes, **options),
        lambda: stam_jax.stac(RATE, partition=stam_jax.LastLayers(2), **codes, **options),
    )


PAIRS = {
    "STAM": stam(),
    "STAM corrected": stam(statistics="corrected", stat_sample=64),
    "STAMLite": stam_lite(),
    "STAC": stac(),
    "STAC int8": stac(sign_state_dtype="int8"),
    "STAC int4": stac(sign_state_dtype="int4"),
    "STAC in codes": all_in_codes(),
    "STAC in codes, amsgrad": all_in_codes(amsgrad=True),
    "STAC bfloat16 state": stac(sign_state_dtype="bfloat16"),
    "STAC without momentum": stac(sign_momentum=0.0),
    "STAC amsgrad": stac(amsgrad=True),
}


def values(seed, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: rng.standard_normal(shape).astype(dtype),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def tensor(array):
    if array.dtype == jnp.bfloat16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def module(seed=0, dtype=np.float32):
    return torch.nn.ModuleDict(
        {
            name: torch.nn.ParameterDict(
                {key: torch.nn.Parameter(tensor(array)) for key, array in group.items()}
            )
            for name, group in values(seed, dtype).items()
        }
    )


def torch_steps(model, optimizer, seeds, dtype=np.float32):
    for seed in seeds:
        grads = values(seed, dtype)
        for name, group in model.items():
            for key, parameter in group.items():
                parameter.grad = tensor(grads[name][key])
        optimizer.step()


def jax_steps(tx, params, state, seeds, dtype=np.float32):
    @jax.jit
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for seed in seeds:
        params, state = step(params, state, jax.tree.map(jnp.asarray, values(seed, dtype)))
    return params, state


def bits(model, optimizer):
    """Return every bit of parameters and state of a torch run, by name."""
    return {
        f"{name}.{slot}": (str(x.dtype), tuple(x.shape), x.contiguous().view(-1).view(torch.uint8))
        for name, p in model.named_parameters()
        for slot, x in {"param": p.detach(), **optimizer.state.get(p, {})}.items()
    }


def same_bits(one, other):
    assert one.keys() == other.keys()
    for key, (*kind, data) in one.items():
        assert kind == list(other[key][:2]), key
        assert torch.equal(data, other[key][2]), key


def same_leaves(one, other):
    both = zip(jax.tree.leaves_with_path(one), jax.tree.leaves_with_path(other), strict=True)
    for (path, x), (again, y) in both:
        assert path == again
        assert (x.dtype, x.shape) == (y.dtype, y.shape), path
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), path


def close(model, params):
    for name, group in model.items():
        for key, parameter in group.items():
            np.testing.assert_allclose(
                parameter.detach().float().numpy(),
                np.asarray(params[name][key], np.float32),
                rtol=2e-6,
                atol=2e-7,
            )


@pytest.mark.parametrize("pair", PAIRS)
def test_there_and_back(tmp_path, pair):
    make_torch, make_jax = PAIRS[pair]
    model = module()
    optimizer = make_torch(model)
    torch_steps(model, optimizer, range(1, 6))
    oc.torch.save(tmp_path / "torch", 5, model=model, optimizer=optimizer)
    tx = make_jax()
    template = jax.tree.map(jnp.zeros_like, values(0))
    found = oc.jax.restore(tmp_path / "torch", params=template, opt_state=tx.init(template))

    # The bits came along: back in torch they are what they were.
    oc.jax.save(tmp_path / "jax", 5, params=found.params, opt_state=found.opt_state)
    again = module(3)
    fresh = make_torch(again)
    oc.torch.restore(tmp_path / "jax", model=again, optimizer=fresh)
    same_bits(bits(again, fresh), bits(model, optimizer))

    # And so from JAX.
    params, state = jax_steps(tx, found.params, found.opt_state, range(6, 9))
    oc.jax.save(tmp_path / "jax", 8, params=params, opt_state=state)
    oc.torch.restore(tmp_path / "jax", model=again, optimizer=fresh)
    oc.torch.save(tmp_path / "torch", 8, model=again, optimizer=fresh)
    back = oc.jax.restore(tmp_path / "torch", params=template, opt_state=tx.init(template))
    same_leaves((back.params, back.opt_state), (params, state))

    # All three go on as the run that was never interrupted.
    torch_steps(model, optimizer, range(6, 9))
    close(model, params)
    torch_steps(model, optimizer, range(9, 16))
    torch_steps(again, fresh, range(9, 16))
    params, state = jax_steps(tx, params, state, range(9, 16))
    close(model, params)
    close(again, params)


def test_what_a_state_says_is_where_it_belongs(tmp_path):
    """Not only there and back: each number stands under its own name in between."""
    model = module()
    optimizer = stac_torch.STAM(model.named_parameters(), lr=RATE)
    torch_steps(model, optimizer, range(1, 6))
    oc.torch.save(tmp_path, 5, model=model, optimizer=optimizer)
    tx = stam_jax.stam(RATE)
    template = jax.tree.map(jnp.zeros_like, values(0))
    state = oc.jax.restore(tmp_path, opt_state=tx.init(template)).opt_state
    flat = stam_jax.state_to_dict(state)
    for name, p in model.named_parameters():
        for slot, ours in {"exp_avg": "mu", "exp_avg_sq": "nu"}.items():
            expected = optimizer.state[p][slot].numpy()
            np.testing.assert_array_equal(flat[f"0/{ours}/{name.replace('.', '/')}"], expected)
    for slot in ("s2", "tau", "beta1", "b1_prod", "s"):
        expected = [float(optimizer.state[p][slot]) for p in model.parameters()]
        # The module's parameters come in the order of jax.tree.leaves.
        assert getattr(state[0], slot).tolist() == expected, slot


@pytest.mark.parametrize("code", ["int8", "int4"])
def test_the_noise_of_rounding_goes_on(tmp_path, code):
    """Stochastic rounding draws by the step, which the sign section has only then."""
    options = {"sign_state_dtype": code, "stochastic_rounding": True, "rounding_seed": 7}
    make_torch, make_jax = stac(**options)
    model = module(0, jnp.bfloat16)
    optimizer = make_torch(model)
    torch_steps(model, optimizer, range(1, 6), jnp.bfloat16)
    oc.torch.save(tmp_path, 5, model=model, optimizer=optimizer)
    tx = make_jax()
    template = jax.tree.map(jnp.asarray, values(0, jnp.bfloat16))
    found = oc.jax.restore(tmp_path, params=template, opt_state=tx.init(template))
    params, state = jax_steps(tx, found.params, found.opt_state, range(6, 9), jnp.bfloat16)
    torch_steps(model, optimizer, range(6, 9), jnp.bfloat16)
    oc.jax.save(tmp_path, 8, params=params, opt_state=state)
    again = module(3, jnp.bfloat16)
    fresh = make_torch(again)
    oc.torch.restore(tmp_path, model=again, optimizer=fresh)
    ours, theirs = bits(again, fresh), bits(model, optimizer)
    # Moments in codes have the same bits in both; others may differ in the last one.
    coded = [key for key in theirs if key.startswith(("body.weight", "cube.weight"))]
    assert {key.rpartition(".")[2] for key in coded} == {"param", "step", "exp_avg", SCALE}
    same_bits({k: ours[k] for k in coded}, {k: theirs[k] for k in coded})


def test_a_complex_parameter_makes_no_other_complex(tmp_path):
    """In JAX the means of the gradient are one vector, which is complex where any leaf is."""
    params = {"a": jnp.ones(3, jnp.complex64), "b": jnp.ones(3)}
    tx = stam_jax.stam_lite(RATE)
    state = tx.init(params)
    for seed in range(1, 4):
        grads = {"a": params["a"] * (seed + 2j), "b": params["b"] * seed}
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    oc.jax.save(tmp_path / "jax", 3, params=params, opt_state=state)
    model = torch.nn.ParameterDict(
        {"a": torch.nn.Parameter(torch.ones(3, dtype=torch.complex64)), "b": torch.ones(3)}
    )
    optimizer = stac_torch.STAMLite(model.named_parameters(), lr=RATE)
    oc.torch.restore(tmp_path / "jax", model=model, optimizer=optimizer)
    kinds = {name: optimizer.state[p]["e1"].dtype for name, p in model.named_parameters()}
    assert kinds == {"a": torch.complex64, "b": torch.float32}
    oc.torch.save(tmp_path / "torch", 3, model=model, optimizer=optimizer)
    back = oc.jax.restore(tmp_path / "torch", params=params, opt_state=state)
    same_leaves((back.params, back.opt_state), (params, state))


def test_a_code_is_no_moment(tmp_path):
    """Another storage of the moment is a difference, and says where."""
    model = module()
    optimizer = stac(sign_state_dtype="int8")[0](model)
    torch_steps(model, optimizer, range(1, 3))
    oc.torch.save(tmp_path / "torch", 2, model=model, optimizer=optimizer)
    template = jax.tree.map(jnp.zeros_like, values(0))
    with pytest.raises(oc.IncompatibleCheckpointError) as caught:
        oc.jax.restore(tmp_path / "torch", opt_state=stam_jax.stac(RATE).init(template))
    text = str(caught.value)
    assert re.search(r"exp_avg_scale of body\.weight in .*STAC has no counterpart", text)
    assert "mu.body.weight has dtype int8 in the checkpoint, float32 here" in text
    tx = stam_jax.scale_by_stam(stat_axes=lambda path, leaf: (0,))
    oc.jax.save(tmp_path / "jax", 2, params=template, opt_state=tx.init(template))
    with pytest.raises(oc.IncompatibleCheckpointError, match=r"opt_state s2 has no counterpart"):
        oc.torch.restore(
            tmp_path / "jax", optimizer=stac_torch.STAM(model.named_parameters()), model=model
        )
