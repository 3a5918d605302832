"""Lion and Signum, which torch does not have: the peers that a sign-based optimizer has to meet."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class Lion(torch.optim.Optimizer):
    """Lion (Chen et al. 2023, arXiv 2302.06675, program 1), with decoupled weight decay.

        p <- p (1 - lr wd) - lr sign(b1 m + (1-b1) g);    m <- b2 m + (1-b2) g

    With b1 = b2 it takes the sign of the updated momentum: Signum.
    """

    def __init__(
        self, params: Any, lr: float, betas: tuple[float, float], weight_decay: float
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take one step."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            b1, b2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                if not self.state[p]:
                    self.state[p]["exp_avg"] = torch.zeros_like(p)
                m = self.state[p]["exp_avg"]
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(group["lr"] * m.lerp(p.grad, 1 - b1).sign_())
                m.lerp_(p.grad, 1 - b2)
        return loss


def lion(
    module: nn.Module, *, learning_rate: float, b1: float, b2: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Lion over all parameters."""
    return Lion(module.parameters(), learning_rate, (b1, b2), weight_decay)


def signum(
    module: nn.Module, *, learning_rate: float, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Signum over all parameters."""
    return Lion(module.parameters(), learning_rate, (momentum, momentum), weight_decay)
