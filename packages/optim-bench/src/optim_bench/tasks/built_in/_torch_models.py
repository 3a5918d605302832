"""The models in PyTorch: modules whose parameter names are the keys of the initial parameters."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from optim_bench.tasks._frameworks import TorchTask
from optim_bench.tasks.built_in._shakespeare import HEADS, NORM_EPS
from optim_bench.tasks.built_in._synthetic import curvature
from optim_bench.tasks.built_in._workload import (
    Array,
    Arrays,
    Workload,
    batches,
    judged_in_slices,
)


class MLP(nn.Module):
    """Fc1, fc2, … with ReLU between them."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.names = [name.removesuffix(".weight") for name in shapes if name.endswith(".weight")]
        for name in self.names:
            outputs, inputs = shapes[f"{name}.weight"]
            self.add_module(name, nn.Linear(inputs, outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1)
        for name in self.names[:-1]:
            x = F.relu(self.get_submodule(name)(x))
        return self.get_submodule(self.names[-1])(x)


class CNN(nn.Module):
    """Two convolutions, the second with stride 2, and two dense layers."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        (c1, c0, _, _), (c2, _, _, _) = shapes["conv1.weight"], shapes["conv2.weight"]
        self.conv1 = nn.Conv2d(c0, c1, 3, padding=1)
        self.conv2 = nn.Conv2d(c1, c2, 3, stride=2, padding=1)
        self.fc1 = nn.Linear(shapes["fc1.weight"][1], shapes["fc1.weight"][0])
        self.fc2 = nn.Linear(shapes["fc2.weight"][1], shapes["fc2.weight"][0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.permute(0, 3, 1, 2) if x.ndim == 4 else x[:, None]
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


class Block(nn.Module):
    """A pre-norm transformer block without biases."""

    def __init__(self, width: int, heads: int = HEADS) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.RMSNorm(width, eps=NORM_EPS)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.norm2 = nn.RMSNorm(width, eps=NORM_EPS)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, length, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Transformer(nn.Module):
    """A pre-norm transformer with learned positions and a separate head."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        (symbols, width), (context, _) = shapes["token.weight"], shapes["position.weight"]
        self.token = nn.Embedding(symbols, width)
        self.position = nn.Embedding(context, width)
        layers = sum(name.endswith(".qkv.weight") for name in shapes)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(layers)))
        self.norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.head = nn.Linear(width, symbols, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        places = torch.arange(x.shape[-1], device=x.device)
        x = self.token(x) + self.position(places)
        return self.head(self.norm(self.blocks(x)))


class Point(nn.Module):
    """A bare parameter vector, so that it has a module to belong to."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dimensions))

    def forward(self) -> torch.Tensor:
        return self.weight


class Rosenbrock(nn.Module):
    """(1-x)^2 + 100 (y-x^2)^2 plus the linear noise, one value per row of noise."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.point = Point(*shapes["point.weight"])

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        x, y = point = self.point()
        return (1 - x) ** 2 + 100 * (y - x**2) ** 2 + noise @ point


class Quadratic(nn.Module):
    """p^T H p / 2 plus the linear noise, one value per row of noise."""

    curvature: torch.Tensor

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.point = Point(*shapes["point.weight"])
        self.register_buffer("curvature", torch.tensor(curvature()), persistent=False)

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        point = self.point()
        return point @ self.curvature @ point / 2 + noise @ point


MODELS: Mapping[str, Callable[[Mapping[str, tuple[int, ...]]], nn.Module]] = {
    "mlp": MLP,
    "cnn": CNN,
    "transformer": Transformer,
    "rosenbrock": Rosenbrock,
    "quadratic": Quadratic,
}


def build(model: str, initial: Mapping[str, NDArray[np.float32]]) -> nn.Module:
    """Build a model and copy the initial parameters into it.

    Raises:
        RuntimeError: the module's parameters are not exactly the given ones.
    """
    module = MODELS[model]({name: value.shape for name, value in initial.items()})
    module.load_state_dict({name: torch.tensor(value) for name, value in initial.items()})
    return module


def cross_entropy(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the mean negative log-likelihood of integer targets under logits."""
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten().long())


def objective(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the mean of outputs that are losses already; there are no targets."""
    return outputs.mean()


LOSSES: Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "cross_entropy": cross_entropy,
    "squared_error": F.mse_loss,
    "objective": objective,
}


def hits(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the number of arg-max hits."""
    return (outputs.argmax(dim=-1) == targets).sum()


def task_of(workload: Workload, arrays: Arrays) -> TorchTask:
    """Return the task that trains a workload in PyTorch."""
    measure = LOSSES[workload.loss]
    classes = workload.loss == "cross_entropy"

    def model(seed: int) -> nn.Module:
        return build(workload.model, arrays.initial(seed))

    def loss(module: nn.Module, batch: Any) -> torch.Tensor:
        inputs, targets = batch
        return measure(module(inputs), targets)

    def evaluate(module: nn.Module, split: str, seed: int, step: int) -> dict[str, float]:
        device = next(module.parameters()).device

        def judged(inputs: Array, targets: Array) -> tuple[float, float]:
            # A copy, because evaluation arrays are read-only and torch would warn about writing to
            # them.
            x, y = (torch.from_numpy(np.array(array)).to(device) for array in (inputs, targets))
            outputs = module(x)
            count = int(hits(outputs, y)) if classes else 0
            return measure(outputs, y).item(), count / targets.size

        return judged_in_slices(judged, *arrays.evaluation(split, seed, step))

    return TorchTask(
        model, functools.partial(batches, arrays), loss, evaluate, **workload.declared()
    )
