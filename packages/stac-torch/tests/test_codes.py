"""Moments of 4 bits, and AdamW's of 8: bits, odd shapes, resuming, skipping, sharding, refusals."""

import numpy as np
import pytest
import stam_core
import torch
from stac_torch import STAC
from stac_torch._local import first_entry
from torch import nn

SIGN4 = {"role": "sign", "sign_state_dtype": "int4"}
ADAMW8 = {"role": "adamw", "adamw_state_dtype": "int8"}
BOTH = [SIGN4, ADAMW8, {**ADAMW8, "amsgrad": True}]
IDS = ["int4", "adamw", "amsgrad"]
# Two have codes: of odd rows that are no multiple of a block, and of a kernel.
SHAPES = {"odd": (64, 301), "conv": (32, 5, 5, 7), "vector": (8192,), "number": (), "none": (0, 40)}
CODED = ("odd", "conv")


def made(options, dtype=torch.float32, **more):
    leaves = {k: nn.Parameter(torch.ones(s, dtype=dtype)) for k, s in SHAPES.items()}
    return leaves, STAC(list(leaves.items()), lr=1e-3, rounding_seed=3, **options, **more)


def gradients(seed):
    """Nine orders of magnitude."""
    rng = np.random.default_rng(seed)
    return {
        k: np.asarray(rng.standard_normal(s) * 10.0 ** rng.integers(-6, 3, s), np.float32)
        for k, s in SHAPES.items()
    }


def drive(leaves, optimizer, seeds):
    for seed in seeds:
        for name, g in gradients(seed).items():
            leaves[name].grad = torch.from_numpy(g).to(leaves[name].dtype)
        optimizer.step()


def bits(leaves, optimizer):
    return {k: (p.detach().clone(), optimizer.state[p]) for k, p in leaves.items()}


def same(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def bits_of_noise(name, t, shape):
    key = stam_core.noise.moment_key(stam_core.noise.noise_key(3, name))
    places = np.arange(np.prod(shape), dtype=np.uint32)
    key, step = np.full(1, key, np.uint32), np.full(1, t, np.uint32)
    drawn = stam_core.noise.random_bits(key, step, places, places * 0, xp=np)
    return drawn.reshape(shape)


def decoded(rule, key, stored, shape):
    if stored is None:
        return np.zeros(shape, np.float32)
    if key != "mu":
        return stam_core.int8.decode_squares(*stored, xp=np)
    if rule is stam_core.SIGN:
        return stam_core.int4.decode(*stored, shape, xp=np)
    return stam_core.int8.decode(*stored, xp=np)


def encoded(rule, key, value, noise):
    if key != "mu":
        return stam_core.int8.encode_squares(value, noise, xp=np)
    if rule is stam_core.SIGN:
        return stam_core.int4.encode(value, noise, xp=np)
    return stam_core.int8.encode(value, xp=np)


def reference(rule, moments, g, t, hp, name):
    """Return stored moments after a step, by NumPy."""
    old = {key: decoded(rule, key, stored, g.shape) for key, stored in moments.items()}
    new = rule.accumulate(g, old, {}, hp, xp=np, exact=stam_core.AS_WRITTEN)
    noise = bits_of_noise(name, t, g.shape)
    return {key: encoded(rule, key, value, noise) for key, value in new.items()}


@pytest.mark.parametrize("options", BOTH, ids=IDS)
def test_codes_are_those_of_the_reference(options):
    leaves, optimizer = made(options)
    sign = options["role"] == "sign"
    rule = stam_core.SIGN if sign else stam_core.ADAMW
    hp = rule.hyperparams() if sign else rule.hyperparams(amsgrad="amsgrad" in options)
    keys = {m.name: m.torch for m in rule.moments_of(hp)}
    expected = {k: dict.fromkeys(keys) for k in CODED}
    for t in range(1, 11):
        drive(leaves, optimizer, [t])
        for name in CODED:
            expected[name] = reference(rule, expected[name], gradients(t)[name], t, hp, name)
            state = optimizer.state[leaves[name]]
            for key, (codes, scale) in expected[name].items():
                np.testing.assert_array_equal(state[keys[key]], codes)
                np.testing.assert_array_equal(state[f"{keys[key]}_scale"], scale)
    for name in SHAPES.keys() - set(CODED):
        assert optimizer.state[leaves[name]]["exp_avg"].dtype is torch.float32


@pytest.mark.parametrize("more", [{}, {"foreach": True}, {"stochastic_rounding": True}])
@pytest.mark.parametrize("options", BOTH, ids=IDS)
def test_a_loaded_state_goes_on_bit_for_bit(options, more):
    dtype = torch.bfloat16 if more.get("stochastic_rounding") else torch.float32
    leaves, optimizer = made(options, dtype, **more)
    drive(leaves, optimizer, range(3))
    others, again = made(options, dtype, **more)
    for name, p in leaves.items():
        others[name].data.copy_(p.data)
    again.load_state_dict(optimizer.state_dict())
    for each in ((leaves, optimizer), (others, again)):
        drive(*each, range(3, 6))
    same(bits(others, again), bits(leaves, optimizer))


@pytest.mark.parametrize("options", BOTH, ids=IDS)
def test_a_skipped_step_changes_no_bit(options):
    """With capturable the flag stays a tensor, and codes are decoded, and encoded, all the same."""
    p = nn.Parameter(torch.ones(64, 301))
    optimizer = STAC([("w", p)], capturable=True, **options)
    for t in range(3):
        p.grad = torch.from_numpy(gradients(t)["odd"])
        optimizer.step()
    before = p.detach().clone(), {k: v.clone() for k, v in optimizer.state[p].items()}
    p.grad = torch.full_like(p, float("nan"))
    optimizer.step()
    same((p.detach(), optimizer.state[p]), before)


@pytest.mark.parametrize("options", BOTH, ids=IDS)
def test_memory_order_is_no_matter(options):
    states = []
    for order in (torch.contiguous_format, torch.channels_last):
        p = nn.Parameter(torch.ones(32, 5, 5, 7).to(memory_format=order))
        optimizer = STAC([("w", p)], **options)
        for t in range(3):
            p.grad = torch.from_numpy(gradients(t)["conv"])
            optimizer.step()
        states.append((p.detach().clone(memory_format=torch.contiguous_format), optimizer.state[p]))
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0, check_stride=False)


@pytest.mark.parametrize("options", BOTH[:2], ids=IDS[:2])
def test_pieces_draw_the_noise_of_the_whole(options, monkeypatch):
    runs = []
    for entries in (1 << 18, 1000):
        monkeypatch.setattr("stac_torch._records.CPU_CHUNK_ENTRIES", entries)
        runs.append(made(options))
        drive(*runs[-1], range(3))
    same(bits(*runs[1]), bits(*runs[0]))


def test_second_moments_are_never_0_and_move():
    """One large entry in a block of tiny ones, and a decay of a thousandth in each step."""
    p = nn.Parameter(torch.zeros(16, 256))
    optimizer = STAC([p], lr=1e-3, betas=(0.9, 0.99), **ADAMW8)
    for t in range(500):
        p.grad = torch.full_like(p, 1e-9)
        p.grad[:, 0], p.grad[:, 1] = 1.0, 1.0 if t < 50 else 0.3
        before = p.detach().clone()
        optimizer.step()
        assert (p - before).abs().max() <= 1.5e-3
    state = optimizer.state[p]
    v = stam_core.int8.decode_squares(
        state["exp_avg_sq"].numpy(), state["exp_avg_sq_scale"].numpy(), xp=np
    )
    assert (v > 0).all()
    # The mean of 16 rows; nearest codes would have kept 0.39.
    assert abs(v[:, 1].mean() - 0.09) < 0.02


def test_a_state_of_another_shape_or_code_is_refused():
    leaves, optimizer = made(SIGN4)
    drive(leaves, optimizer, range(2))
    for key, value, text in (
        (
            "exp_avg",
            torch.zeros(64, 150, dtype=torch.uint8),
            r"exp_avg has shape \(64, 150\), .*\(64, 151",
        ),
        ("exp_avg_scale", torch.zeros(64, 2), r"exp_avg_scale has shape \(64, 2\), .* \(64, 3\)"),
        ("exp_avg_scale", None, "an int4 exp_avg and exp_avg_scale come together"),
        ("step", None, r"lacks the state \['step'\]"),
    ):
        saved = optimizer.state_dict()
        saved["state"][0] = {k: v for k, v in saved["state"][0].items() if k != key}
        if value is not None:
            saved["state"][0][key] = value
        with pytest.raises(ValueError, match=text):
            made(SIGN4)[1].load_state_dict(saved)
    with pytest.raises(ValueError, match="fused=True has no kernel for sign_state_dtype='int4'"):
        made({"role": "sign"}, fused=True)[1].load_state_dict(optimizer.state_dict())


def test_a_whole_tensor_begins_at_its_first_entry():
    assert first_entry(torch.zeros(3, 4)) == 0
