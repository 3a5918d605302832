"""The two updates: exact limits, storage dtypes, and their multi-tensor forms."""

import numpy as np
import pytest
import torch
from stac_torch import STAC, _records
from stam_core import reference
from torch import nn


def parameters(dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(7, 5), (5,), (), (3, 2, 4)]
    return [
        nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))
        for shape in shapes
    ]


def give_gradients(params, generator):
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)


def trained(params, optimizer, steps=20, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        give_gradients(params, generator)
        optimizer.step()
    return [p.detach().clone() for p in params]


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_all_sign_is_lion_with_equal_betas(decay, foreach):
    """Lion: c = b1 m + (1-b1) g; p <- p (1 - lr wd) - lr sign(c); m <- b2 m + (1-b2) g."""
    lr, beta = 0.01, 0.8
    ours = parameters(torch.float64)
    options = {"lr": lr, "sign_momentum": beta, "weight_decay": decay, "foreach": foreach}
    got = trained(ours, STAC(ours, role="sign", **options))
    theirs = parameters(torch.float64)
    moments = [torch.zeros_like(p) for p in theirs]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _ in range(20):
            give_gradients(theirs, generator)
            for p, m in zip(theirs, moments, strict=True):
                c = beta * m + (1 - beta) * p.grad
                p.copy_(p * (1 - lr * decay) - lr * c.sign())
                m.copy_(beta * m + (1 - beta) * p.grad)
    for p, expected in zip(got, theirs, strict=True):
        torch.testing.assert_close(p, expected.detach(), rtol=0, atol=1e-14)


ADAMW = [
    {},
    {"foreach": True},
    {"foreach": False},
    {"amsgrad": True},
    {"maximize": True, "weight_decay": 0.2},
    {"betas": (0.5, 0.7), "eps": 1e-3, "weight_decay": 0.1},
    {"lr": torch.tensor(0.02)},
]


@pytest.mark.parametrize("options", ADAMW)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_all_adamw_is_torch_adamw(options, dtype):
    options = {"weight_decay": 0.0, **options}
    ours, theirs = parameters(dtype), parameters(dtype)
    got = trained(ours, STAC(ours, role="adamw", **options))
    expected = trained(theirs, torch.optim.AdamW(theirs, **options))
    for p, other in zip(got, expected, strict=True):
        torch.testing.assert_close(p, other, rtol=0, atol=0)


def test_last_n_layers_of_all_is_torch_adamw():
    results = []
    for build in (
        lambda m: STAC(m, last_n_layers=9, weight_decay=0.1),
        lambda m: torch.optim.AdamW(m.parameters(), weight_decay=0.1),
    ):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1))
        optimizer = build(model)
        for _ in range(10):
            optimizer.zero_grad()
            model(torch.randn(8, 5)).square().mean().backward()
            optimizer.step()
        results.append(nn.utils.parameters_to_vector(model.parameters()))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


def test_both_sections_are_the_core_rules():
    ours = parameters(torch.float64)
    roles = {"0": "sign", "1": "adamw", "2": "sign", "3": "adamw"}
    start = {name: ours[int(name)].detach().numpy().copy() for name in roles}
    groups = [
        {"params": [ours[0], ours[2]], "role": "sign", "sign_lr_scale": 0.75},
        {"params": [ours[1], ours[3]], "role": "adamw"},
    ]
    optimizer = STAC(groups, lr=0.01, weight_decay=0.1, sign_weight_decay=0.2)
    options = {"learning_rate": 0.01, "sign_lr_scale": 0.75, "weight_decay": 0.1}
    core = reference.STAC(roles, sign_weight_decay=0.2, **options)
    leaves, state = start, core.init(start)
    generator = torch.Generator().manual_seed(3)
    for _ in range(10):
        give_gradients(ours, generator)
        optimizer.step()
        grads = {name: ours[int(name)].grad.numpy() for name in roles}
        leaves, state = core.step(leaves, grads, state)
    for name in roles:
        np.testing.assert_allclose(ours[int(name)].detach(), leaves[name], atol=1e-13)
    np.testing.assert_allclose(optimizer.state[ours[0]]["exp_avg"], state["mu/0"], atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_sign_is_taken_before_the_moment_is_rounded(dtype):
    """A gradient that the storage cannot see still moves the parameter."""
    for foreach in (False, True):
        p = nn.Parameter(torch.zeros(2))
        optimizer = STAC([p], role="sign", lr=1.0, sign_state_dtype=dtype, foreach=foreach)
        p.grad = torch.tensor([1e-42, -1e-42])
        optimizer.step()
        assert optimizer.state[p]["exp_avg"].tolist() == [0.0, 0.0]
        assert p.tolist() == [-1.0, 1.0]


def test_a_narrow_moment_saturates():
    for foreach in (False, True):
        p = nn.Parameter(torch.zeros(2))
        optimizer = STAC([p], role="sign", sign_state_dtype="float16", foreach=foreach)
        p.grad = torch.tensor([1e9, -1e9])
        optimizer.step()
        assert optimizer.state[p]["exp_avg"].tolist() == [65504.0, -65504.0]


def test_a_16_bit_moment_is_computed_wide_and_rounded_once():
    p = nn.Parameter(torch.zeros(100))
    optimizer = STAC([p], role="sign", sign_state_dtype="bf16")
    generator = torch.Generator().manual_seed(0)
    stored = torch.zeros(100)
    for _ in range(5):
        p.grad = torch.randn(100, generator=generator)
        optimizer.step()
        stored = (stored * 0.9 + p.grad * 0.1).bfloat16().float()
        torch.testing.assert_close(optimizer.state[p]["exp_avg"].float(), stored, rtol=0, atol=0)


def test_a_16_bit_parameter_is_rounded_once():
    p = nn.Parameter(torch.linspace(-3, 3, 101).bfloat16())
    before = p.detach().float()
    optimizer = STAC([p], role="sign", lr=0.01, weight_decay=0.5)
    p.grad = torch.ones_like(p)
    optimizer.step()
    expected = (before * (1 - 0.01 * 0.5) - 0.01).bfloat16()
    torch.testing.assert_close(p.detach(), expected, rtol=0, atol=0)


@pytest.mark.parametrize("amsgrad", [False, True])
def test_adamw_moments_in_another_dtype(amsgrad):
    """One step of torch's AdamW on wide copies, with the moments rounded after it."""
    p = nn.Parameter(torch.linspace(-1, 1, 50))
    options = {"lr": 0.01, "weight_decay": 0.1, "amsgrad": amsgrad}
    optimizer = STAC([p], role="adamw", adamw_state_dtype="bf16", **options)
    twin = nn.Parameter(p.detach().clone())
    reference = torch.optim.AdamW([twin], **options)
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        p.grad = torch.randn(50, generator=generator)
        twin.grad = p.grad.clone()
        optimizer.step()
        reference.step()
        for key, value in reference.state[twin].items():
            if key != "step":
                value.copy_(value.bfloat16())
                assert optimizer.state[p][key].dtype is torch.bfloat16
                torch.testing.assert_close(optimizer.state[p][key].float(), value, rtol=0, atol=0)
        torch.testing.assert_close(p, twin, rtol=0, atol=0)


@pytest.mark.parametrize("state", [None, "bfloat16", "int8"])
@pytest.mark.parametrize("foreach", [False, True])
def test_large_tensors_are_cut_without_a_trace(monkeypatch, state, foreach):
    results = []
    for limit in (1 << 24, 1000):
        monkeypatch.setattr(_records, "CPU_CHUNK_ENTRIES", limit)
        generator = torch.Generator().manual_seed(0)
        p = nn.Parameter(torch.randn(64, 70, generator=generator))
        rest = [nn.Parameter(torch.ones(300)), nn.Parameter(torch.ones(2000))]
        params = [p, *rest]
        optimizer = STAC(params, role="sign", sign_state_dtype=state, foreach=foreach)
        results.append(trained(params, optimizer, steps=4))
    for whole, cut in zip(*results, strict=True):
        torch.testing.assert_close(whole, cut, rtol=0, atol=0)


def test_temporaries_are_bounded_by_the_chunk(monkeypatch):
    monkeypatch.setattr(_records, "CPU_CHUNK_ENTRIES", 100)
    zeros = [torch.zeros(1000, 10), torch.zeros(30), torch.zeros(4)]
    slots = [_records.Slot(p, p, {}) for p in zeros]
    sizes = [sum(slot.param.numel() for slot in chunk) for chunk in _records.chunks(slots)]
    assert max(sizes) <= 100
    assert sum(sizes) == 10034


def test_without_momentum_no_state():
    p = nn.Parameter(torch.zeros(3))
    optimizer = STAC([p], role="sign", lr=1.0, sign_momentum=0.0)
    p.grad = torch.tensor([1e-30, 0.0, -5.0])
    optimizer.step()
    assert p.tolist() == [-1.0, 0.0, 1.0]
    assert len(optimizer.state) == 0


def test_channels_last_keeps_its_layout():
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last))
    twin = nn.Parameter(p.detach().contiguous())
    optimizers = STAC([p], role="sign"), STAC([twin], role="sign")
    for _ in range(3):
        twin.grad = torch.randn(8, 4, 3, 3)
        p.grad = twin.grad.to(memory_format=torch.channels_last)
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(p.detach(), twin.detach(), rtol=0, atol=0)
    exp_avg = optimizers[0].state[p]["exp_avg"]
    assert exp_avg.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("role", ["sign", "adamw"])
def test_a_gradient_that_the_backward_pass_left_conjugated(role):
    results = []
    for resolved in (False, True):
        p = nn.Parameter(torch.ones(2, dtype=torch.complex64))
        optimizer = STAC([p], role=role, lr=0.5)
        (p.conj() * torch.tensor([1 + 2j, 3j]).conj()).sum().conj().real.backward()
        assert p.grad.is_conj()
        p.grad = p.grad.resolve_conj() if resolved else p.grad
        optimizer.step()
        results.append(p.detach())
    torch.testing.assert_close(*results, rtol=0, atol=0)
    assert (results[0] != 1).all()


def test_a_closure_returns_its_loss():
    p = nn.Parameter(torch.ones(1))
    optimizer = STAC([p], role="sign", lr=0.5)

    def closure():
        optimizer.zero_grad()
        loss = (p * 3).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 3.0
    assert p.item() == 0.5


def test_a_scaler_of_the_gradients_is_divided_out():
    """What a fused optimizer gets from GradScaler: scaled gradients and their factor."""
    plain, scaled = parameters(), parameters()
    for role in ("sign", "adamw"):
        one, other = STAC(plain, role=role), STAC(scaled, role=role)
        for p, q in zip(plain, scaled, strict=True):
            p.grad = torch.ones_like(p)
            q.grad = torch.full_like(q, 1024.0)
        other.grad_scale, other.found_inf = torch.tensor(1024.0), torch.tensor(0.0)
        one.step()
        other.step()
        for p, q in zip(plain, scaled, strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=0)
            torch.testing.assert_close(
                one.state[p]["exp_avg"], other.state[q]["exp_avg"], rtol=0, atol=0
            )
