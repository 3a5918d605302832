"""Factories of the PyTorch optimizers: a module and keywords in, a `torch.optim.Optimizer` out."""

import importlib
from collections.abc import Callable
from typing import Any

import stac_torch
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
