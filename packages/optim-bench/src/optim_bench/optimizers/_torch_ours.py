"""Factories of our optimizers: a module and keywords in, the optimizer over the module out."""

from typing import Any

import stac_torch
import torch
from torch import nn


def stac(
    module: nn.Module, *, learning_rate: float, b1: float, b2: float, **rest: Any
) -> torch.optim.Optimizer:
    """STAC over the module's own layers."""
    return stac_torch.STAC(module, lr=learning_rate, betas=(b1, b2), **rest)


def stam(
    module: nn.Module, *, learning_rate: float, b1_base: float, b2: float, **rest: Any
) -> torch.optim.Optimizer:
    """STAM over the module's parameters."""
    named = module.named_parameters()
    return stac_torch.STAM(named, lr=learning_rate, betas=(b1_base, b2), **rest)


def stam_lite(
    module: nn.Module, *, learning_rate: float, b1_base: float, moment_decay: float, **rest: Any
) -> torch.optim.Optimizer:
    """STAMLite over the module's parameters."""
    named = module.named_parameters()
    return stac_torch.STAMLite(named, lr=learning_rate, betas=(b1_base, moment_decay), **rest)
