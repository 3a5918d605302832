"""The rules that the study of one-buffer rules compares, as plain research code.

Equations and names are those of `evidence/rules-plan.md`. Nothing here is part of a package.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

EPS = 1e-8
SIGNAL_DECAY = 0.95
SAMPLED = 128
LARGEST = 0.95
FIRST = 0.9


def rows_of(x: torch.Tensor) -> torch.Tensor:
    """Return a view with one row per index of the first axis."""
    return x.reshape(len(x), -1) if x.ndim else x.reshape(1, 1)


def whitening_b1(c: float, b1: float) -> float:
    """Return the b1 at which innovations are white, from their autocorrelation under `b1`.

    Example:
        >>> round(whitening_b1(-0.05, 0.9), 6), whitening_b1(1.0, 0.9)  # noise, drift
        (0.95, 0.0)
    """
    k = 1 - b1
    error = c + k
    noise = 1 - error
    if noise <= 0:
        return 0.0
    q = max(error * (2 * k - k * k) - k * k * noise, 0.0) / noise
    return min(1 - (-q + (q * q + 4 * q) ** 0.5) / 2, LARGEST)


class Innovation:
    """b1 per tensor from the autocorrelation of a sample of its innovations."""

    def __init__(self, p: torch.Tensor) -> None:
        self.stride = max(1, -(-p.numel() // SAMPLED))
        self.last: torch.Tensor | None = None
        self.c0 = self.c1 = 0.0
        self.b1 = FIRST

    def next(self, g: torch.Tensor, m: torch.Tensor, correction: Any) -> float:
        """Return b1 for a step, given the momentum before it and its 1 - P (0 at the first)."""
        if correction == 0:
            return self.b1
        r = g.flatten()[:: self.stride] - m.flatten()[:: self.stride] / correction
        if self.last is not None:
            d = SIGNAL_DECAY
            self.c0 = d * self.c0 + (1 - d) * float(r @ r)
            self.c1 = d * self.c1 + (1 - d) * float(r @ self.last)
            if self.c0 > 0:
                self.b1 = whitening_b1(self.c1 / self.c0, self.b1)
        self.last = r
        return self.b1

    def entries(self) -> int:
        """Return how many numbers it keeps."""
        return 4 + (0 if self.last is None else self.last.numel())


class Alignment:
    """b1 per tensor or per row from the alignment of gradient and momentum."""

    def __init__(self, p: torch.Tensor, *, per_row: bool) -> None:
        self.per_row = per_row and p.ndim > 1
        self.products = torch.zeros(3, len(p) if self.per_row else 1, 1)

    def next(self, g: torch.Tensor, m: torch.Tensor, correction: Any) -> Any:
        """Return b1 for a step, as `Innovation` does; (rows, 1) where it is per row."""
        if isinstance(correction, float) and correction == 0:
            return FIRST
        x, y = rows_of(g), rows_of(m)
        found = torch.stack([(x * y), (x * x), (y * y)])
        found = found.sum(-1, keepdim=True) if self.per_row else found.sum((1, 2)).view(3, 1, 1)
        self.products.lerp_(found, 1 - SIGNAL_DECAY)
        gm, gg, mm = self.products
        a = gm / (gg * mm).sqrt().clamp_min(1e-30)
        b1 = LARGEST * (1 - a.abs().clamp_max(1.0))
        return b1 if self.per_row else float(b1)

    def entries(self) -> int:
        """Return how many numbers it keeps."""
        return self.products.numel() + (self.products[0].numel() if self.per_row else 1)


SIGNALS: dict[str, Callable[[torch.Tensor], Any]] = {
    "innovation": Innovation,
    "alignment": functools.partial(Alignment, per_row=False),
    "row alignment": functools.partial(Alignment, per_row=True),
}


class Rows(torch.optim.Optimizer):
    """Momentum under one second moment per row, per entry or per tensor; its sign or itself.

    Args:
        params: parameters, or groups that may override `form` and `power`.
        lr: learning rate.
        b1: a number, or a name in `SIGNALS`.
        form: "sign" for sign(m) (mean_row|m'|/sqrt(v'))^power, "norm" for u = m'/sqrt(v'), "look"
            for u with the m' of a next equal gradient, "cautious" for u where it agrees with g.
        power: of the sign's scale, or of |u|.
        b2: decay of the second moment.
        over: what one second moment is over: "row", "entry", "tensor", "factored" for a product of
            one per row and one per column, or "now" for none: g is divided by its own row's root
            mean square before it is averaged.
        weight_decay: decoupled.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        *,
        b1: float | str,
        form: str = "norm",
        power: float = 1.0,
        b2: float = 0.99,
        over: str = "row",
        weight_decay: float = 0.01,
    ) -> None:
        settings = {"lr": lr, "b1": b1, "form": form, "power": power, "b2": b2, "over": over}
        super().__init__(params, {**settings, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take one step."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.sub_(group["lr"] * self._direction(p, p.grad, group).view_as(p))
        return None if closure is None else closure()

    def _direction(self, p: torch.Tensor, grad: torch.Tensor, group: dict[str, Any]) -> Any:
        state, g = self.state[p], rows_of(grad)
        if group["over"] == "now":
            g = g if p.ndim > 1 else g.view(1, -1)
            g = g / ((g * g).mean(1, keepdim=True).sqrt() + EPS)
        squares = {
            "now": lambda: g.new_ones(1, 1),
            "row": lambda: (g * g).mean(1, keepdim=True),
            "factored": lambda: (g * g).mean(1, keepdim=True),
            "entry": lambda: g * g,
            "tensor": lambda: (g * g).mean().view(1, 1),
        }[group["over"]]()
        if not state:
            state["step"], state["left"] = 0, 1.0
            state["m"], state["v"] = torch.zeros_like(g), torch.zeros_like(squares)
            if group["over"] == "factored" and p.ndim > 1:
                state["columns"] = torch.zeros_like(g[:1])
            if isinstance(group["b1"], str):
                state["signal"] = SIGNALS[group["b1"]](p)
        state["step"] += 1
        m, v = state["m"], state["v"]
        signal = state.get("signal")
        b1: Any = group["b1"] if signal is None else signal.next(grad, m, 1 - state["left"])
        m.copy_(b1 * m + (1 - b1) * g)
        state["left"] = state["left"] * b1
        v.lerp_(squares, 1 - group["b2"])
        v = v / (1 - group["b2"] ** state["step"])
        if "columns" in state:
            state["columns"].lerp_((g * g).mean(0, keepdim=True), 1 - group["b2"])
            c = state["columns"] / (1 - group["b2"] ** state["step"])
            v = v * c / v.mean().clamp_min(1e-30)
        root = v.sqrt().add_(EPS)
        if group["form"] == "look":
            return (b1 * m + (1 - b1) * g) / (1 - state["left"] * b1) / root
        if group["form"] in ("norm", "cautious"):
            u = m / (1 - state["left"]) / root
            if group["form"] == "cautious":
                agrees = (u * g > 0).float()
                return u * agrees / agrees.mean().clamp_min(1e-3)
            return u if group["power"] == 1 else u.sign() * u.abs() ** group["power"]
        if group["power"] == 0:
            return m.sign()
        size = (m / (1 - state["left"])).abs()
        scale = size.mean(1, keepdim=True)
        return m.sign() * (scale / root) ** group["power"]

    def entries(self) -> int:
        """Return the numbers in the state, counters left out."""
        found = 0
        groups = ((group, p) for group in self.param_groups for p in group["params"])
        for group, state in ((group, self.state[p]) for group, p in groups if p in self.state):
            kept = [key for key in ("m", "v", "columns") if key in state]
            # Where it is not over anything, v is 1 for good.
            kept = ["m"] if group["over"] == "now" else kept
            found += sum(state[key].numel() for key in kept)
            found += state["signal"].entries() if "signal" in state else 0
        return found


class HeadMomentum(torch.optim.Optimizer):
    """Gradients normalised per row; momentum in the last matrix only (the idea of SCALE)."""

    def __init__(self, params: Any, lr: float, head: torch.Tensor) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": 0.01})
        self.head = head

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take one step."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                u = p.grad
                if p is self.head:
                    m = self.state[p].setdefault("m", torch.zeros_like(p))
                    u = m.mul_(0.9).add_(u, alpha=0.1)
                # A 1-D tensor has no rows to normalise, so it is one.
                rows = rows_of(u) if p.ndim > 1 else u.view(1, -1)
                root = (rows * rows).mean(1, keepdim=True).sqrt() + EPS
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(group["lr"] * (rows / root).view_as(p))
        return None if closure is None else closure()

    def entries(self) -> int:
        """Return the numbers in the state."""
        return sum(state["m"].numel() for state in self.state.values())


def rows(module: nn.Module, *, learning_rate: float, **settings: Any) -> Rows:
    """`Rows` over all parameters."""
    return Rows(module.parameters(), learning_rate, **settings)


def stac_row(module: nn.Module, *, learning_rate: float, b1: float) -> Rows:
    """row_sign with the last layer on AdamW, as STAC partitions by default."""
    layers = [m for m in module.modules() if any(True for _ in m.parameters(recurse=False))]
    last = list(layers[-1].parameters(recurse=False))
    held = {id(p) for p in last}
    groups = [
        {"params": [p for p in module.parameters() if id(p) not in held], "form": "sign"},
        {"params": last, "over": "entry", "b2": 0.999},
    ]
    return Rows(groups, learning_rate, b1=b1)


def head_momentum(module: nn.Module, *, learning_rate: float) -> HeadMomentum:
    """`HeadMomentum` with the last matrix as the head."""
    params = list(module.parameters())
    return HeadMomentum(params, learning_rate, [p for p in params if p.ndim > 1][-1])


class NovoGrad(torch.optim.Optimizer):
    """NovoGrad (Ginsburg et al. 2019, arXiv 1905.11286): one v per tensor, before the momentum.

    v starts at the first |g|^2; m = b1 m + (g/(sqrt(v) + eps) + wd p); p <- p - lr m.
    """

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr, "b1": 0.9, "b2": 0.95, "weight_decay": 0.01})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take one step."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state, square = self.state[p], (p.grad * p.grad).sum()
                if not state:
                    state["m"], state["v"] = torch.zeros_like(p), square.clone()
                else:
                    state["v"].lerp_(square, 1 - group["b2"])
                scaled = p.grad / (state["v"].sqrt() + EPS) + group["weight_decay"] * p
                state["m"].mul_(group["b1"]).add_(scaled)
                p.sub_(group["lr"] * state["m"])
        return None if closure is None else closure()

    def entries(self) -> int:
        """Return the numbers in the state."""
        return sum(s["m"].numel() + s["v"].numel() for s in self.state.values())


def novograd(module: nn.Module, *, learning_rate: float) -> NovoGrad:
    """`NovoGrad` over all parameters."""
    return NovoGrad(module.parameters(), learning_rate)
