"""Accelerate: trained there, saved with save_state, imported, gone on with here."""

import random

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from optim_checkpoint import UnsupportedStateError
from optim_checkpoint import torch as ckpt
from optim_checkpoint.migrate import import_checkpoint
from torch import nn


def build():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.2), nn.Linear(3, 1))
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    return net, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2)


def train(net, optimizer, scheduler):
    for _ in range(3):
        batch = torch.randn(8, 4) + random.random() + float(np.random.rand())  # noqa: NPY002 - the global generator
        optimizer.zero_grad()
        net(batch).square().mean().backward()
        optimizer.step()
        scheduler.step()


def outcome(net, optimizer):
    state = {n: v.clone() for n, v in net.state_dict().items()}
    for n, p in net.named_parameters():
        state |= {f"{n}.{slot}": v.clone() for slot, v in optimizer.state[p].items()}
    return state


class Counter:
    def state_dict(self):
        return {"seen": 24}

    def load_state_dict(self, state):
        pass


@pytest.mark.parametrize("safe", [True, False])
def test_a_run_of_accelerate_goes_on_here(safe, tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True)
    prepared = accelerator.prepare(*build())
    accelerator.register_for_checkpointing(Counter())
    train(*prepared)
    accelerator.save_state(str(tmp_path / "old"), safe_serialization=safe)
    train(*prepared)
    expected = outcome(prepared[0], prepared[1].optimizer)

    net, optimizer, scheduler = build()
    if safe:
        with pytest.raises(UnsupportedStateError, match="does not keep the order"):
            import_checkpoint(tmp_path / "old", tmp_path, 3, optimizer="torch.optim.AdamW")
    report = import_checkpoint(tmp_path / "old", tmp_path, 3, optimizer=optimizer, model=net)
    assert report.left_out == ()
    restored = ckpt.restore(tmp_path, model=net, optimizer=optimizer, scheduler=scheduler)
    assert restored.extra["custom_checkpoint_0.pkl"] == {"seen": 24}
    train(net, optimizer, scheduler)
    resumed = outcome(net, optimizer)
    assert resumed.keys() == expected.keys()
    assert [k for k in resumed if not torch.equal(resumed[k], expected[k])] == []
