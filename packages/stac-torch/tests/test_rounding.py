"""Stochastic rounding of bfloat16 parameters."""

import pytest
import torch
from stac_torch import STAC
from stac_torch._rounding import Noise, random_bits, round_stochastically_
from stam_core.noise import noise_key
from torch import nn

CPU = torch.device("cpu")


def rounded(value, step=1, key=5, offset=0):
    p = torch.zeros(value.shape, dtype=torch.bfloat16)
    round_stochastically_(p, value, Noise(key, torch.tensor(float(step)), offset))
    return p


@pytest.mark.parametrize("share", [0.0, 0.125, 0.5, 0.9])
@pytest.mark.parametrize("sign", [1, -1])
def test_it_is_unbiased_between_the_two_neighbours(share, sign):
    low, high = 1.0, 1.0 + 2**-7
    value = torch.full((200_000,), sign * (low + share * 2**-7))
    got = rounded(value)
    assert set(got.unique().tolist()) <= {sign * low, sign * high}
    up = (got.float() == sign * high).double().mean().item()
    assert up == pytest.approx(share, abs=0.005)


def test_what_bfloat16_holds_is_kept():
    value = torch.randn(1000).bfloat16().float()
    torch.testing.assert_close(rounded(value).float(), value, rtol=0, atol=0)
    special = torch.tensor([float("inf"), -float("inf"), float("nan"), 0.0, -0.0])
    torch.testing.assert_close(rounded(special).float(), special, rtol=0, atol=0, equal_nan=True)


def test_noise_depends_on_each_of_its_parts():
    def bits(**changed):
        parts = {"key": 1, "step": torch.tensor(1.0), "offset": 0, **changed}
        return random_bits(Noise(**parts), 4096, CPU)

    same = bits()
    torch.testing.assert_close(bits(), same, rtol=0, atol=0)
    others = [bits(key=2), bits(step=torch.tensor(2.0)), bits(offset=4096), bits(offset=1 << 33)]
    for other in others:
        assert (other == same).float().mean() < 0.01
        pair = torch.stack([same.double(), other.double()])
        assert torch.corrcoef(pair)[0, 1].abs() < 0.06
    torch.testing.assert_close(bits(offset=100)[:50], same[100:150], rtol=0, atol=0)


def test_bits_are_uniform():
    bits = random_bits(Noise(3, torch.tensor(9.0)), 1 << 16, CPU)
    assert bits.min() >= 0
    assert bits.max() < 1 << 16
    counts = torch.bincount(bits >> 12, minlength=16).double()
    chi2 = ((counts - 4096) ** 2 / 4096).sum()
    assert chi2 < 40


def test_keys_name_parameters_and_seeds():
    keys = {noise_key(s, n) for s in range(3) for n in ("a", "b")}
    assert len(keys) == 6


def frozen_share(**options):
    generator = torch.Generator().manual_seed(0)
    p = nn.Parameter((0.02 * torch.randn(400, 500, generator=generator)).bfloat16())
    optimizer = STAC([p], role="sign", lr=1e-4, track_diagnostics=True, **options)
    start = p.detach().clone()
    for _ in range(20):
        p.grad = torch.ones_like(p)
        optimizer.step()
    return optimizer.diagnostics()["frozen_share"], (start.float() - p.float()).mean().item()


def test_small_steps_are_lost_by_rounding_to_nearest_and_kept_on_average_by_this():
    frozen, _ = frozen_share()
    assert frozen == pytest.approx(0.116, abs=0.02)
    _, moved = frozen_share(stochastic_rounding=True)
    assert moved == pytest.approx(20 * 1e-4, rel=0.01)


@pytest.mark.parametrize("role", ["sign", "adamw"])
def test_replicas_agree_and_seeds_do_not(role):
    def run(seed):
        p = nn.Parameter(torch.full((4096,), 1.0, dtype=torch.bfloat16))
        options = {"stochastic_rounding": True, "rounding_seed": seed, "lr": 1e-3}
        optimizer = STAC([("w", p)], role=role, **options)
        for _ in range(3):
            p.grad = torch.ones_like(p)
            optimizer.step()
        return p.detach()

    torch.testing.assert_close(run(0), run(0), rtol=0, atol=0)
    assert not torch.equal(run(0), run(1))
    assert run(0).unique().numel() > 1


def test_only_bfloat16_is_rounded_so():
    p = nn.Parameter(torch.ones(3))
    optimizer = STAC([p], role="sign", stochastic_rounding=True)
    p.grad = torch.ones(3)
    optimizer.step()
    assert set(optimizer.state[p]) == {"exp_avg"}
    assert p.tolist() == pytest.approx([0.999] * 3)


@pytest.mark.parametrize("state", [None, "int8"])
def test_a_state_that_was_made_without_it_goes_on_with_it(state):
    """A model that becomes bfloat16, or an option that was set later."""
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    optimizer = STAC(model, last_n_layers=0, stochastic_rounding=True, sign_state_dtype=state)

    def step():
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        return [optimizer.state[p].get("step") for p in model.parameters()]

    assert step() == [None] * 4
    model[0].bfloat16()
    assert step() == [1, 1, None, None]
    # A counter that is left over belongs to no other parameter.
    model[0].float()
    model[1].bfloat16()
    assert step() == [1, 1, 1, 1]
    assert step() == [1, 1, 2, 2]


def test_a_skipped_step_draws_nothing():
    p = nn.Parameter(torch.full((64,), 1.0, dtype=torch.bfloat16))
    optimizer = STAC([p], role="sign", stochastic_rounding=True, lr=1e-3)
    p.grad = torch.ones_like(p)
    optimizer.step()
    before = p.detach().clone()
    p.grad = torch.full_like(p, float("nan"))
    optimizer.step()
    torch.testing.assert_close(p.detach(), before, rtol=0, atol=0)
    assert optimizer.state[p]["step"] == 1
