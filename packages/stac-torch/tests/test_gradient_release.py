"""Gradient release: one optimizer per parameter, stepped inside the backward pass."""

from functools import partial

import pytest
import torch
from stac_torch import STAC, param_groups
from torch import nn
from torch.distributed.optim import _apply_optimizer_in_backward

OPTIONS = {"lr": 3e-3, "weight_decay": 0.1}
identical = partial(torch.testing.assert_close, rtol=0, atol=0)


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 66), nn.LayerNorm(66), nn.Linear(66, 64), nn.Linear(64, 3))


def batch(step):
    return torch.randn(8, 64, generator=torch.Generator().manual_seed(step))


def backward(net, step):
    loss = net(batch(step)).square().mean()
    loss.backward()


def ordinary(options, steps=4):
    net = model()
    optimizer = STAC(param_groups(net, weight_decay=0.1), lr=3e-3, **options)
    for step in range(steps):
        optimizer.zero_grad()
        backward(net, step)
        optimizer.step()
    return net, optimizer


def released(options):
    """Return a model whose parameters step as soon as their gradient is there, and optimizers."""
    net = model()
    optimizers = {}
    for group in param_groups(net, weight_decay=0.1):
        for parameter in group["params"]:
            optimizers[parameter] = STAC([{**group, "params": [parameter]}], lr=3e-3, **options)

    def step(parameter):
        optimizers[parameter].step()
        parameter.grad = None

    for parameter in optimizers:
        parameter.register_post_accumulate_grad_hook(step)
    return net, optimizers


@pytest.mark.parametrize(
    "options", [{}, {"sign_state_dtype": "int8"}, {"sign_state_dtype": "bf16"}, {"foreach": True}]
)
def test_steps_in_the_backward_pass_are_those_after_it(options):
    net, optimizers = released(options)
    for step in range(4):
        backward(net, step)
        assert all(p.grad is None for p in net.parameters())
    plain, optimizer = ordinary(options)
    identical(dict(net.state_dict()), dict(plain.state_dict()))
    for ours, theirs in zip(net.parameters(), plain.parameters(), strict=True):
        identical(optimizers[ours].state[ours], optimizer.state[theirs])


def test_the_skip_is_per_parameter():
    """No optimizer sees the gradients of the others: that is the price of releasing them."""
    net, optimizers = released({})
    backward(net, 0)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    # A nan in the middle: the layers behind it get finite gradients, those before it do not.
    net[1].weight.register_hook(lambda grad: grad * torch.nan)
    backward(net, 1)
    skipped = {n: optimizers[p].nonfinite_skipped_steps for n, p in net.named_parameters()}
    assert {name for name, count in skipped.items() if count} == {"1.weight"}
    moved = {n for n, p in net.named_parameters() if not torch.equal(p, before[n])}
    assert moved == set(before) - {"1.weight"}


def test_a_released_run_resumes(tmp_path):
    net, optimizers = released({"sign_state_dtype": "int8"})
    for step in range(2):
        backward(net, step)
    names = {parameter: name for name, parameter in net.named_parameters()}
    states = {names[p]: optimizer.state_dict() for p, optimizer in optimizers.items()}
    torch.save((net.state_dict(), states), tmp_path / "saved.pt")
    weights, states = torch.load(tmp_path / "saved.pt", weights_only=True)
    again, others = released({"sign_state_dtype": "int8"})
    again.load_state_dict(weights)
    for name, parameter in again.named_parameters():
        others[parameter].load_state_dict(states[name])
    for each in (net, again):
        for step in range(2, 4):
            backward(each, step)
    identical(dict(again.state_dict()), dict(net.state_dict()))


# Torch has no public name for it yet.
def test_torch_builds_it_into_the_backward_pass():
    net = model()
    sign, adamw = list(net[:3].parameters()), list(net[3].parameters())
    _apply_optimizer_in_backward(STAC, sign, {**OPTIONS, "role": "sign", "sign_lr_scale": 0.75})
    _apply_optimizer_in_backward(STAC, adamw, {**OPTIONS, "role": "adamw"})
    for step in range(4):
        backward(net, step)
    identical(dict(net.state_dict()), dict(ordinary({})[0].state_dict()))


def test_frozen_parameters_can_be_left_out():
    net = model()
    net[0].requires_grad_(False)
    groups = param_groups(net, hold_frozen=False)
    held = [parameter for group in groups for parameter in group["params"]]
    assert held
    for parameter in held:
        parameter.register_post_accumulate_grad_hook(lambda p: None)
    assert not any(parameter is own for parameter in held for own in net[0].parameters())
