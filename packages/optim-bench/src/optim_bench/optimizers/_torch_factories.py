"""Factories of the PyTorch optimizers: a module and keywords in, a `torch.optim.Optimizer` out."""

import torch
from torch import nn


def adamw(
    module: nn.Module,
    *,
    learning_rate: float,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
) -> torch.optim.Optimizer:
    """AdamW as torch has it."""
    return torch.optim.AdamW(
        module.parameters(), learning_rate, betas=(b1, b2), eps=eps, weight_decay=weight_decay
    )


def sgd(module: nn.Module, *, learning_rate: float, momentum: float) -> torch.optim.Optimizer:
    """Heavy-ball SGD."""
    return torch.optim.SGD(module.parameters(), learning_rate, momentum=momentum)
