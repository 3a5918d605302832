"""Factories of the PyTorch optimizers: a module and keywords in, a `torch.optim.Optimizer` out."""

from collections.abc import Callable
from typing import Any

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


def adafactor(
    module: nn.Module, *, learning_rate: float, beta2_decay: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Adafactor as torch has it."""
    return torch.optim.Adafactor(
        module.parameters(), learning_rate, beta2_decay=beta2_decay, weight_decay=weight_decay
    )


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon on the hidden matrices, AdamW on the rest, as one optimizer.

    Its groups are the very groups of the two, so that a schedule that writes `group["lr"]` reaches
    both, and its state is theirs.
    """

    def __init__(self, muon: torch.optim.Optimizer, adamw: torch.optim.Optimizer) -> None:
        self.parts = [muon, adamw]
        groups = [group for part in self.parts for group in part.param_groups]
        super().__init__([{**group} for group in groups], {})
        self.param_groups = groups

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take one step with both parts."""
        loss = None if closure is None else closure()
        for part in self.parts:
            part.step()
            self.state.update(part.state)
        return loss


def _hidden(module: nn.Module) -> set[str]:
    """Return the names of the matrices that are no embeddings, without the last, the output's.

    An output layer that shares its matrix with an embedding is none of them already.
    """
    kinds = (nn.Embedding, nn.EmbeddingBag)
    parts = list(module.modules())
    tables = {id(m.weight) for m in parts if isinstance(m, kinds)}
    tied = any(id(getattr(m, "weight", None)) in tables for m in parts if not isinstance(m, kinds))
    inner = [n for n, p in module.named_parameters() if p.ndim == 2 and id(p) not in tables]
    return set(inner if tied else inner[:-1])


def muon(
    module: nn.Module,
    *,
    learning_rate: float,
    momentum: float,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
) -> torch.optim.Optimizer:
    """Muon as torch has it on the hidden matrices, scaled to AdamW's root mean square."""
    named = dict(module.named_parameters())
    hidden = _hidden(module)
    rest = [p for name, p in named.items() if name not in hidden]
    matrices = [p for name, p in named.items() if name in hidden]
    inner = torch.optim.AdamW(
        rest, learning_rate, betas=(b1, b2), eps=eps, weight_decay=weight_decay
    )
    if not matrices:
        return inner
    outer = torch.optim.Muon(
        matrices,
        learning_rate,
        weight_decay=weight_decay,
        momentum=momentum,
        adjust_lr_fn="match_rms_adamw",
    )
    return MuonWithAdamW(outer, inner)
