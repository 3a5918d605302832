"""Training in PyTorch: on one thread, whatever the task's model is."""

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from optim_bench.executors.machine import driver
from optim_bench.executors.train._session import digest
from optim_bench.executors.train._torch_rate import check_rate, group_rates, set_rate, torch_seeded
from optim_bench.optimizers import FactoryError, OptimizerInfo, call_factory
from optim_bench.tasks import Task, TaskError, TorchTask, call_with, ran_out
from optim_bench.tasks.built_in import Array


class TorchSession:
    """Parameters and optimizer state of one run in PyTorch."""

    def __init__(
        self,
        task: TorchTask,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        learning_rate: float,
        seed: int,
        device: str,
    ) -> None:
        self.task, self.module, self.optimizer = task, module, optimizer
        self.model: Any = torch.compile(module) if task.compile else module
        self.seed, self.device = seed, torch.device(device)
        self.batches = task.batch_stream(seed)
        self.start: dict[str, str] = {}
        self.steps = self.served = 0
        # A factory may give its groups different rates; a schedule keeps their proportions.
        self.scales = [rate / learning_rate for rate in group_rates(optimizer)]

    def advance(self, rates: Sequence[float]) -> Array:
        """Take one step per rate."""
        self.model.train()
        values = torch.empty(len(rates), device=self.device)
        for i, rate in enumerate(rates):
            for group, scale in zip(self.optimizer.param_groups, self.scales, strict=True):
                set_rate(group, rate * scale)
            self.optimizer.zero_grad(set_to_none=True)
            values[i] = self._gradients()
            if self.task.clip_norm is not None:
                nn.utils.clip_grad_norm_(self.module.parameters(), self.task.clip_norm)
            self.optimizer.step()
            self.steps += 1
            if self.task.on_step is not None:
                self.task.on_step(self.module, self.steps)
        return values.cpu().numpy()

    @torch.no_grad()
    def evaluate(self, split: str, step: int) -> dict[str, float]:
        """Return what the task measures on a split."""
        self.model.eval()
        with self._precision():
            found = call_with(self.task.evaluate, self.model, split, seed=self.seed, step=step)
        return self.task.measured(found, split)

    def parameter_sizes(self) -> list[tuple[int, int]]:
        """Return (entries, bytes) for each parameter."""
        return [(p.numel(), p.numel() * p.element_size()) for p in self.module.parameters()]

    def state_bytes(self) -> int:
        """Return the size of all tensors in the optimizer's state."""
        return sum(_tensor_bytes(self.optimizer.state))

    def _gradients(self) -> torch.Tensor:
        """Leave the gradients of one step's batches in the parameters; return their mean loss."""
        parts = self.task.accumulate
        total: torch.Tensor | None = None
        for _ in range(parts):
            batch = self._next()
            with self._precision():
                loss = _scalar(self.task, self.task.loss(self.model, batch))
            (loss if parts == 1 else loss / parts).backward()
            value = loss.detach()
            total = value if total is None else total + value
        assert total is not None  # noqa: S101 - accumulate is at least 1
        return total if parts == 1 else total / parts

    def _next(self) -> Any:
        try:
            batch = next(self.batches)
        except StopIteration:
            raise ran_out(self.task, self.served) from None
        if self.served == 0:
            self.start["batch"] = digest(_leaves(batch))
        self.served += 1
        if self.task.move is not None:
            return self.task.move(batch, self.device)
        return _moved(batch, self.device)

    def _precision(self) -> Any:
        if self.task.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.task.autocast)


def _scalar(task: Task, loss: Any) -> torch.Tensor:
    if isinstance(loss, torch.Tensor) and loss.ndim == 0:
        return loss
    what = (
        f"a tensor of shape {tuple(loss.shape)}; reduce it, for example by .mean()"
        if isinstance(loss, torch.Tensor)
        else f"a {type(loss).__name__}; it has to be a 0-d tensor"
    )
    raise TaskError(f"{task.name}: loss returned {what}")


def _moved(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, torch.Tensor):
        return batch.to(device)
    if isinstance(batch, np.ndarray):
        # A copy, because arrays may be closed against writing, about which torch would warn.
        return torch.from_numpy(np.array(batch)).to(device)
    if isinstance(batch, Mapping):
        return {name: _moved(item, device) for name, item in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_moved(item, device) for item in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(_moved(item, device) for item in batch)
    return batch


def _leaves(batch: Any) -> Iterator[Any]:
    if isinstance(batch, torch.Tensor):
        batch = batch.detach().cpu()
        yield (batch.float() if batch.dtype == torch.bfloat16 else batch).numpy()
    elif isinstance(batch, Mapping):
        for name, item in batch.items():
            yield str(name)
            yield from _leaves(item)
    elif isinstance(batch, list | tuple):
        for item in batch:
            yield from _leaves(item)
    elif isinstance(batch, np.ndarray | np.generic | int | float | str | bytes):
        yield batch


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
    task: TorchTask, info: OptimizerInfo, hyperparameters: Mapping[str, Any], seed: int, device: str
) -> Iterator[TorchSession]:
    """Open a run on one thread with seeded generators, and give both back afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def make(rate: float) -> tuple[nn.Module, torch.optim.Optimizer]:
        settings = {**hyperparameters, "learning_rate": rate}
        module = _module(task, seed, device)
        return module, _optimizer(info, module, settings)

    try:
        check_rate(info, make, hyperparameters["learning_rate"], device)
        with torch_seeded(seed, device):
            module = _module(task, seed, device)
            # Before the optimizer is built: some change what they are given.
            start = digest(_leaves(dict(module.state_dict())))
            optimizer = _optimizer(info, module, hyperparameters)
            rate = hyperparameters["learning_rate"]
            opened = TorchSession(task, module, optimizer, rate, seed, device)
            opened.start["parameters"] = start
            yield opened
    finally:
        torch.set_num_threads(threads)


def _optimizer(
    info: OptimizerInfo, module: nn.Module, settings: Mapping[str, Any]
) -> torch.optim.Optimizer:
    made = call_factory(info.name, "torch", info.load_factory(), settings, module)
    # A schedule has an `optimizer`, and no groups of its own.
    if not (hasattr(made, "param_groups") and hasattr(made, "step")):
        raise FactoryError(
            f"{info.name}: the factory returned a {type(made).__name__}; return a "
            "torch.optim.Optimizer"
        )
    closure = inspect.signature(made.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise FactoryError(
            f"{info.name}: its step needs a closure, and the benchmark takes the gradients of one "
            "batch for a step; compare an optimizer whose step takes none"
        )
    return made


def try_factory(task: TorchTask, info: OptimizerInfo, settings: Mapping[str, Any]) -> None:
    """Make an optimizer, and look at what came."""
    with torch_seeded(0):
        group_rates(_optimizer(info, _module(task, 0, "cpu"), settings))


def device_facts(device: str) -> dict[str, str]:
    """Return what decides numbers on an accelerator: which one, its driver, the flags."""
    return {
        "device": torch.cuda.get_device_name(device),
        "driver": driver(),
        "deterministic algorithms": str(torch.are_deterministic_algorithms_enabled()),
        "deterministic cudnn": str(torch.backends.cudnn.deterministic),
        "float32 matmul precision": torch.get_float32_matmul_precision(),
    }


def _module(task: TorchTask, seed: int, device: str) -> nn.Module:
    module = task.model(seed)
    if not isinstance(module, nn.Module):
        raise TaskError(
            f"{task.name}: model returned a {type(module).__name__}; it has to be a torch.nn.Module"
        )
    return module.to(device)
