"""State bytes in PyTorch after two steps, and on CUDA the peak that the allocator tells."""

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import torch
from stac_torch import STAC
from torch import Tensor, nn

from optim_bench.report.memory._report import Model

_RATE = 2e-3
BATCH = 256

CASES: Mapping[str, Callable[[nn.Module], torch.optim.Optimizer]] = MappingProxyType(
    {
        "AdamW": lambda model: torch.optim.AdamW(model.parameters(), _RATE),
        "STAC, last layer on AdamW": lambda model: STAC(model, _RATE),
        "STAC, last two layers on AdamW": lambda model: STAC(model, _RATE, last_n_layers=2),
        "STAC, bfloat16 momentum": lambda model: STAC(
            model, _RATE, sign_state_dtype=torch.bfloat16
        ),
        "STAC, int8 momentum": lambda model: STAC(model, _RATE, sign_state_dtype="int8"),
        "STAC, plain sign": lambda model: STAC(model, _RATE, sign_momentum=0.0),
    }
)


def measure(model: Model, case: str) -> dict[str, int | None]:
    """Return exact bytes of parameters and state, and the peak of a training step on CUDA.

    State is made in the first step, so the peak is that of the second one, with its forward and
    backward pass. On the CPU there is no such counter, and the peak is None.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(model.widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    module = nn.Sequential(*layers[:-1]).to(device)
    optimizer = CASES[case](module)
    inputs = torch.randn(BATCH, model.widths[0], device=device)
    for _ in range(2):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        optimizer.zero_grad()
        module(inputs).square().mean().backward()
        optimizer.step()
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return {
        "parameter_bytes": sum(p.nbytes for p in module.parameters()),
        "state_bytes": sum(t.nbytes for t in _tensors(list(optimizer.state.values()))),
        "temporary_bytes": None,
        "peak_bytes": peak,
    }


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        # A quantized moment is a tensor made of others.
        flatten = getattr(value, "__tensor_flatten__", None)
        if flatten is None:
            yield value
        else:
            yield from _tensors([getattr(value, name) for name in flatten()[0]])
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
