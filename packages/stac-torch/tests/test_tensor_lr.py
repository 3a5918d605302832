"""A tensor as the learning rate: every group has its own, whatever a scheduler writes into it."""

import pytest
import torch
from stac_torch import STAC
from torch import nn
from torch.optim.lr_scheduler import CyclicLR, LambdaLR, OneCycleLR, ReduceLROnPlateau


def build(lr, **options):
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    return STAC(model, lr=lr, **options)


def plateau(optimizer):
    scheduler = ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    for _ in range(2):
        scheduler.step(1.0)


def lambdas(optimizer):
    count = len(optimizer.param_groups)
    LambdaLR(optimizer, [lambda _, i=i: 1.0 / (i + 1) for i in range(count)])


def one_cycle(optimizer):
    rates = [0.1 * (i + 1) for i in range(len(optimizer.param_groups))]
    OneCycleLR(optimizer, rates, total_steps=10)


def cyclic(optimizer):
    rates = [0.1 * (i + 1) for i in range(len(optimizer.param_groups))]
    CyclicLR(optimizer, rates, [1.0] * len(rates), cycle_momentum=False)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("drive", [plateau, lambdas, one_cycle, cyclic])
def test_schedulers_write_what_they_write_for_a_number(drive, split):
    rates = []
    for lr in (1.0, torch.tensor(1.0)):
        optimizer = build(lr, weight_decay=0.1, exclude_bias_and_norm_from_weight_decay=split)
        drive(optimizer)
        rates.append([float(group["lr"]) for group in optimizer.param_groups])
        assert float(optimizer.defaults["lr"]) == 1.0
    assert rates[1] == pytest.approx(rates[0])
    assert len(rates[0]) == (4 if split else 2)


def test_every_group_has_its_own():
    lr = torch.tensor(0.1)
    optimizer = build(lr)
    optimizer.add_param_group({"params": [("x", nn.Parameter(torch.ones(2)))], "role": "sign"})
    tensors = [lr, *(group["lr"] for group in optimizer.param_groups)]
    assert len({t.data_ptr() for t in tensors}) == 4
    assert all(isinstance(t, torch.Tensor) for t in tensors)


def test_a_group_that_brings_one_keeps_it():
    lr = torch.tensor(0.1)
    parameter = nn.Parameter(torch.ones(2))
    optimizer = STAC([{"params": [parameter], "role": "sign", "lr": lr}])
    assert optimizer.param_groups[0]["lr"] is lr


def test_what_cannot_be_read_is_not():
    model = nn.Linear(2, 2, device="meta")
    assert STAC(model, lr=torch.tensor(0.1, device="meta")).param_groups[0]["lr"].is_meta
    with torch._subclasses.FakeTensorMode():
        STAC(nn.Linear(2, 2), lr=torch.empty(()))


@pytest.mark.parametrize("follow", [False, True])
def test_momentum_of_a_cycle(follow):
    """Torch cycles ``betas``, which the sign section does not use, unless somebody copies it."""
    optimizer = build(0.1)
    scheduler = OneCycleLR(optimizer, 0.1, total_steps=10)

    def copy_momentum(optimizer, args, kwargs):
        for group in optimizer.param_groups:
            group["sign_momentum"] = group["betas"][0]

    if follow:
        optimizer.register_step_pre_hook(copy_momentum)
    optimizer.step()
    scheduler.step()
    optimizer.step()
    sign = optimizer.param_groups[0]
    assert sign["betas"][0] != 0.9
    assert sign["sign_momentum"] == (sign["betas"][0] if follow else 0.9)
