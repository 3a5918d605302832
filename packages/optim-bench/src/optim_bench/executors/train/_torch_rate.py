"""Optimizers that do not listen to `group["lr"]`, found before they train at one rate throughout.

A wrapper may keep groups of its own beside those of the optimizer inside: a schedule that writes
the wrapper's then changes nothing. Three optimizers take one step on the same gradients: built at
a rate, built there and then set to half of it, and built at half of it. Where the second goes the
way of the first and the third does not, the rate is fixed when the optimizer is built.
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from optim_bench.executors.train._session import SameFactory, seeded
from optim_bench.optimizers import OPTIMIZERS, OPTIONAL, FactoryError, OptimizerInfo

Start = Callable[[float], tuple[nn.Module, torch.optim.Optimizer]]
# What was looked at lately in this process: a sweep opens the same few optimizers many times.
_CHECKED: deque[SameFactory] = deque(maxlen=16)


def group_rates(optimizer: torch.optim.Optimizer) -> list[float]:
    """Return the learning rate of each group.

    Raises:
        FactoryError: a group has none.
    """
    for index, group in enumerate(optimizer.param_groups):
        if "lr" not in group:
            raise FactoryError(
                f"group {index} of {type(optimizer).__name__} has no 'lr'; the benchmark sets it "
                "before every step, so each of param_groups needs one"
            )
    return [float(group["lr"]) for group in optimizer.param_groups]


def set_rate(group: dict[str, Any], rate: float) -> None:
    """Write the learning rate of a group."""
    if isinstance(group["lr"], torch.Tensor):  # compiled steps read it where it is
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def check_rate(info: OptimizerInfo, start: Start, rate: float, device: str) -> None:
    """Check, once for a factory in use, that an optimizer from outside listens to `group["lr"]`.

    Args:
        info: the optimizer.
        start: from a rate to a fresh module and its optimizer.
        rate: the peak of the run.
        device: where the run is.

    Raises:
        ValueError: it does not.
    """
    if info.key in OPTIMIZERS or info.key in OPTIONAL:
        return
    factory = SameFactory(info.load_factory())
    if factory in _CHECKED:
        return
    built = _stepped(start, rate, 1.0, device)
    halved = _stepped(start, rate, 0.5, device)
    rebuilt = _stepped(start, rate / 2, 1.0, device)
    if _equal(built, halved) and not _equal(built, rebuilt):
        raise ValueError(
            f"{info.key} does not listen to the 'lr' of its param_groups: it steps at the rate it "
            "was built with, whatever the schedule says; let its param_groups be those of the "
            "optimizer that it wraps"
        )
    _CHECKED.append(factory)


def _stepped(start: Start, rate: float, factor: float, device: str) -> list[torch.Tensor]:
    # The same noise each time, for those that draw some.
    with torch_seeded(0, device):
        module, optimizer = start(rate)
        for group, value in zip(optimizer.param_groups, group_rates(optimizer), strict=True):
            set_rate(group, value * factor)
        for p in module.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
    return [p.detach() for p in module.parameters()]


def _equal(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(map(torch.equal, left, right))


@contextmanager
def torch_seeded(seed: int, device: str = "cpu") -> Iterator[None]:
    """Seed the generators of NumPy, `random`, the CPU and the device; restore them afterwards."""
    # Not `torch.manual_seed`: it seeds every accelerator, and the others belong to the caller.
    place = torch.device(device)
    before = torch.default_generator.get_state()
    cuda = torch.cuda.get_rng_state(place) if place.type == "cuda" else None
    with seeded(seed):
        torch.default_generator.manual_seed(seed)
        if cuda is not None:
            with torch.cuda.device(place):
                torch.cuda.manual_seed(seed)
        try:
            yield
        finally:
            torch.default_generator.set_state(before)
            if cuda is not None:
                torch.cuda.set_rng_state(cuda, place)
