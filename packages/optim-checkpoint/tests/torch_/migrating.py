"""A small run with everything that has to come along: buffers, dropout, groups, all generators."""

import random

import numpy as np
import torch


class Run:
    """Three steps, saved by another tool, and three more."""

    def __init__(self, *, groups=False, buffers=True):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002 - the global generator
        norm = [torch.nn.BatchNorm1d(6)] if buffers else []
        parts = [torch.nn.Linear(4, 6), *norm, torch.nn.Dropout(0.2), torch.nn.Linear(6, 6)]
        self.model = torch.nn.Sequential(*parts)
        last, *rest = reversed(list(self.model.parameters()))
        given = [{"params": [last]}, {"params": rest, "lr": 0.003}] if groups else None
        self.optimizer = torch.optim.AdamW(given or self.model.parameters(), lr=0.01)
        self.scheduler = torch.optim.lr_scheduler.MultiStepLR(self.optimizer, [2, 5])

    def objects(self):
        return {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}

    def train(self, steps=3):
        for _ in range(steps):
            x = torch.randn(8, 4) + random.random() + float(np.random.rand())  # noqa: NPY002 - the global generator
            self.optimizer.zero_grad()
            self.model(x).square().mean().backward()
            self.optimizer.step()
            self.scheduler.step()
        return self

    def outcome(self):
        """Every bit that a run has, by name."""
        state = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            slots = self.optimizer.state[parameter]
            state |= {f"{name}.{slot}": value for slot, value in slots.items()}
        for g, group in enumerate(self.optimizer.param_groups):
            state[f"lr.{g}"] = torch.tensor(group["lr"], dtype=torch.float64)
        state["generator"] = torch.get_rng_state()
        return {k: v.clone() for k, v in state.items()}


def identical(one, other):
    assert one.keys() == other.keys()
    different = [k for k in one if not torch.equal(one[k], other[k])]
    assert different == []
