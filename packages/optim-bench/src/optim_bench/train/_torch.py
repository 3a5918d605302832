"""Training in PyTorch: eager, on one thread."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from optim_bench.optimizers import OptimizerInfo
from optim_bench.train import _torch_models as models
from optim_bench.train._torch_rate import check_rate, group_rates, set_rate
from optim_bench.train._torch_seeding import torch_seeded
from optim_bench.workloads import Array, Workload


class TorchSession:
    """Parameters and optimizer state of one run in PyTorch."""

    def __init__(
        self,
        workload: Workload,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        learning_rate: float,
    ) -> None:
        self.module, self.optimizer = module, optimizer
        self.loss = models.LOSSES[workload.loss]
        self.classes = workload.loss == "cross_entropy"
        self.device = next(module.parameters()).device
        # A factory may give its groups different rates; a schedule keeps their proportions.
        self.scales = [rate / learning_rate for rate in group_rates(optimizer)]

    def advance(self, inputs: Array, targets: Array, rates: Sequence[float]) -> Array:
        """Take one step per rate."""
        self.module.train()
        x, y = self._tensors(inputs, targets)
        values = torch.empty(len(rates), device=self.device)
        for i, rate in enumerate(rates):
            for group, scale in zip(self.optimizer.param_groups, self.scales, strict=True):
                set_rate(group, rate * scale)
            self.optimizer.zero_grad(set_to_none=True)
            loss = self.loss(self.module(x[i]), y[i])
            loss.backward()
            self.optimizer.step()
            values[i] = loss.detach()
        return values.cpu().numpy()

    @torch.no_grad()
    def evaluate(self, inputs: Array, targets: Array) -> tuple[float, float]:
        """Return mean loss and accuracy."""
        self.module.eval()
        x, y = self._tensors(inputs, targets)
        outputs = self.module(x)
        hits = int(models.hits(outputs, y)) if self.classes else 0
        return self.loss(outputs, y).item(), hits / targets.size

    def parameter_sizes(self) -> list[tuple[int, int]]:
        """Return (entries, bytes) for each parameter."""
        return [(p.numel(), p.numel() * p.element_size()) for p in self.module.parameters()]

    def state_bytes(self) -> int:
        """Return the size of all tensors in the optimizer's state."""
        return sum(_tensor_bytes(self.optimizer.state))

    def _tensors(self, *arrays: Array) -> list[torch.Tensor]:
        # A copy, because evaluation arrays are read-only and torch would warn about writing to
        # them.
        return [torch.from_numpy(np.array(array)).to(self.device) for array in arrays]


def _tensor_bytes(value: Any) -> Iterator[int]:
    if isinstance(value, torch.Tensor):
        # Wrapper subclasses (8-bit states) hold their data in inner tensors.
        if flatten := getattr(value, "__tensor_flatten__", None):
            names, _ = flatten()
            for name in names:
                yield from _tensor_bytes(getattr(value, name))
        else:
            yield value.numel() * value.element_size()
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensor_bytes(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensor_bytes(item)


@contextmanager
def session(
    workload: Workload,
    info: OptimizerInfo,
    hyperparameters: Mapping[str, Any],
    initial: Mapping[str, Array],
    device: str,
    seed: int,
) -> Iterator[TorchSession]:
    """Open a run on one thread with seeded generators, and give both back afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def start(rate: float) -> tuple[nn.Module, torch.optim.Optimizer]:
        module = models.build(workload.model, initial).to(device)
        settings = {**hyperparameters, "learning_rate": rate}
        return module, info.load_factory()(module, **settings)

    try:
        check_rate(info, start, hyperparameters["learning_rate"], device)
        with torch_seeded(seed, device):
            module, optimizer = start(hyperparameters["learning_rate"])
            yield TorchSession(workload, module, optimizer, hyperparameters["learning_rate"])
    finally:
        torch.set_num_threads(threads)
