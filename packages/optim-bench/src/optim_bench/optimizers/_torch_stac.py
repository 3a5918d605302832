"""Factories of STAC: a module and keywords in, the optimizer over the module's own layers out."""

from typing import Any

import stac_torch
import torch
from torch import nn


def stac(
    module: nn.Module, *, learning_rate: float, b1: float, b2: float, **rest: Any
) -> torch.optim.Optimizer:
    """STAC over the module's own layers."""
    return stac_torch.STAC(module, lr=learning_rate, betas=(b1, b2), **rest)
