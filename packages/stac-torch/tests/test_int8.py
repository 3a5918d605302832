"""The 8-bit momentum: its code, its size, and what it does to the signs."""

import pytest
import torch
from stac_torch import STAC
from stac_torch._codes import is_coded
from stac_torch._int8 import BLOCK, decode, encode, scale_shape
from torch import nn

SHAPES = [(16, 256), (5, 1000), (8, 17), (3, 4, 6, 5), (1, 4096), (4, 255), (2, 257)]


def randoms(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
def test_round_trip(shape):
    """Each value within half a code of itself, on the scale of fourth roots."""
    values = randoms(shape)
    codes, scale = encode(values)
    assert (codes.shape, codes.dtype) == (values.shape, torch.int8)
    assert (tuple(scale.shape), scale.dtype) == (scale_shape(values.shape), torch.float32)
    back = decode(codes, scale)
    rows = values.reshape(shape[0], -1)
    for row in range(shape[0]):
        for start in range(0, rows.shape[1], BLOCK):
            x = rows[row, start : start + BLOCK]
            y = back.reshape(shape[0], -1)[row, start : start + BLOCK]
            largest = x.abs().max()
            error = (x.abs() / largest).pow(0.25) - (y.abs() / largest).pow(0.25)
            assert error.abs().max() <= 0.5 / 127 + 1e-6
            assert (y * x >= 0).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_encoding_again_changes_nothing(shape):
    """A skipped step decodes and encodes: the state must stay bit for bit."""
    codes, scale = encode(randoms(shape))
    again = encode(decode(codes, scale))
    torch.testing.assert_close(again[0], codes, rtol=0, atol=0)
    torch.testing.assert_close(again[1], scale, rtol=0, atol=0)


def test_blocks_do_not_cross_rows():
    """Coding rows apart is coding them together: a shard along dimension 0 is exact."""
    values = randoms((9, 300)) * torch.logspace(-6, 3, 9).unsqueeze(1)
    codes, scale = encode(values)
    for start, stop in ((0, 4), (4, 5), (5, 9)):
        part = encode(values[start:stop])
        torch.testing.assert_close(part[0], codes[start:stop], rtol=0, atol=0)
        torch.testing.assert_close(part[1], scale[start:stop], rtol=0, atol=0)


def test_small_entries_keep_their_sign():
    """A linear code puts everything below 1/254 of the block's largest to 0; this one does not."""
    values = torch.full((1, 256), 1e-8)
    values[0, 0] = 1.0
    values[0, 1::2] *= -1
    linear = (values / values.abs().max() * 127).round()
    assert (linear[0, 1:] == 0).all()
    torch.testing.assert_close(decode(*encode(values)).sign(), values.sign(), rtol=0, atol=0)


def test_zeros_and_what_is_not_finite():
    codes, scale = encode(torch.zeros(2, 300))
    assert decode(codes, scale).abs().max() == 0
    values = torch.ones(2, 300)
    values[0, 3], values[1, 299] = float("nan"), float("inf")
    back = decode(*encode(values))
    assert back[0, :256].isnan().all()
    assert back[1, 256:].isnan().all()
    assert back[0, 256:].tolist() == [1.0] * 44


def test_size():
    """At most 1.06 bytes per entry for tensors of 4,096 entries with rows of 67 or more."""
    for shape in ((64, 67), (61, 68), (4096, 4096), (128, 100, 3)):
        p = nn.Parameter(torch.zeros(shape, device="meta"))
        optimizer = STAC([p], role="sign", sign_state_dtype="int8")
        *_, total, why = optimizer.describe().splitlines()
        assert why == "sign, loop: no kernel runs on meta"
        described = int(total.split()[-1].replace(",", ""))
        assert described / p.numel() <= 1.06


def test_what_stays_float32():
    shapes = [(63, 65), (8192,), (1024, 15), (512, 16)]
    params = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
    optimizer = STAC(params, role="sign", sign_state_dtype="int8")
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    found = [optimizer.state[p]["exp_avg"].dtype for p in params]
    assert found == [torch.float32, torch.float32, torch.float32, torch.int8]
    assert [is_coded(p) for p in params] == [False, False, False, True]


def test_signs_agree_with_a_float32_momentum():
    """On noisy gradients whose scales differ by 1,000; a linear code is worse by far."""
    generator = torch.Generator().manual_seed(0)
    shape = (16, 1024)
    size = torch.logspace(-3, 0, shape[1])[torch.randperm(shape[1], generator=generator)]
    drift = 0.3 * torch.randn(shape, generator=generator)
    exact = torch.zeros(shape)
    coded = encode(exact)
    linear = torch.zeros(shape)
    agreements = []
    for _ in range(200):
        g = size * (drift + torch.randn(shape, generator=generator))
        exact = 0.9 * exact + 0.1 * g
        m = 0.9 * decode(*coded) + 0.1 * g
        coded = encode(m)
        n = 0.9 * linear + 0.1 * g
        unit = n.view(16, 4, 256).abs().amax(-1, keepdim=True) / 127
        linear = ((n.view(16, 4, 256) / unit).round() * unit).view(shape)
        agreements.append(((m.sign() == exact.sign()), (n.sign() == exact.sign())))
    ours, theirs = (torch.stack(a[-50:]).float().mean() for a in zip(*agreements, strict=True))
    assert ours > 0.985
    assert theirs < 0.9


def test_training_by_int8_follows_float32():
    losses = {}
    for dtype in ("float32", "int8"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 64), nn.Linear(64, 1))
        optimizer = STAC(model, lr=2e-3, sign_state_dtype=dtype)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, 100)
        x = torch.randn(256, 64)
        y = x[:, :1].sin()
        for _ in range(100):
            optimizer.zero_grad()
            loss = (model(x) - y).square().mean()
            loss.backward()
            optimizer.step()
            schedule.step()
        losses[dtype] = loss.item()
    assert optimizer.state[model[0].weight]["exp_avg"].dtype is torch.int8
    assert losses["int8"] < 1.5 * losses["float32"] < 1e-3
