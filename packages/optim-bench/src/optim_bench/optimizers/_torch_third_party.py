"""Factories of optimizers that other distributions bring, each imported when it is first built."""

import importlib

import torch
from torch import nn


def stac_published(
    module: nn.Module,
    *,
    learning_rate: float,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
) -> torch.optim.Optimizer:
    """STAC of the distribution stac-optimizer, its partition and all else as its authors chose."""
    published = importlib.import_module("stac_optimizer")
    return published.STAC(
        module, lr=learning_rate, betas=(b1, b2), eps=eps, weight_decay=weight_decay
    )


def adamw_8bit(
    module: nn.Module,
    *,
    learning_rate: float,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
) -> torch.optim.Optimizer:
    """AdamW8bit of the distribution torchao; its first step compiles for about twenty seconds.

    Tensors of fewer than 4,096 entries keep their state in float32.
    """
    torchao = importlib.import_module("torchao.optim")
    return torchao.AdamW8bit(
        module.parameters(), lr=learning_rate, betas=(b1, b2), eps=eps, weight_decay=weight_decay
    )
