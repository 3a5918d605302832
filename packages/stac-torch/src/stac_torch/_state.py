"""The parts of a parameter's state that all updates share, and what a state costs."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from stac_torch._family import Section
from stac_torch._layers import is_trained
from stac_torch._local import local
from stac_torch._records import Slot
from stac_torch._rounding import Noise


def rounds_stochastically(group: Mapping[str, Any], parameter: Tensor) -> bool:
    """Tell whether a parameter of a group is rounded stochastically."""
    return group["stochastic_rounding"] and parameter.dtype is torch.bfloat16


def draws_noise(state: Mapping[str, Tensor]) -> bool:
    """Tell whether a moment of a state is rounded stochastically: those in uint8 are."""
    coded = "exp_avg_scale" in state
    return coded and any(value.dtype is torch.uint8 for value in state.values())


def new_step(group: Mapping[str, Any], parameter: Tensor) -> Tensor:
    """Return the counter of a parameter before its first step."""
    dtype, device = step_dtype(group), step_device(group, parameter)
    if device.type == "cpu":
        # A number, of which a FakeTensor keeps what it stands for: torch reads it at each step.
        return torch.tensor(0.0, dtype=dtype, device=device)
    return torch.zeros((), dtype=dtype, device=device)


def step_dtype(group: Mapping[str, Any]) -> torch.dtype:
    """Return the dtype of counters, as torch chooses it: float64 where that is the default dtype.

    Kernels read float32.
    """
    double = torch.get_default_dtype() is torch.float64 and not group.get("fused")
    return torch.float64 if double else torch.float32


def step_device(group: Mapping[str, Any], parameter: Tensor) -> torch.device:
    """Return where the counter of a parameter lives."""
    # On the host it costs no launch; graphs and kernels need it on the device.
    on_device = group["capturable"] or group.get("fused")
    return local(parameter).device if on_device else torch.device("cpu")


def zeros(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a moment before the first step."""
    return torch.zeros_like(parameter, dtype=dtype, memory_format=torch.preserve_format)


def planned_slot(
    section: Section, group: Mapping[str, Any], parameter: Tensor, state: Mapping[str, Any]
) -> Slot:
    """Return the record of a parameter's next step.

    A gradient and a state that are not there yet are on the meta device.
    """
    meta = parameter.detach().to("meta")
    planned = dict(state) or section.new_state(group, meta)
    rounded = rounds_stochastically(group, parameter)
    noisy = rounded or draws_noise(planned)
    noise = Noise(0, meta, parameter=rounded) if noisy else None
    grad = torch.empty_like(meta) if parameter.grad is None else parameter.grad
    return Slot(parameter, grad, planned, noise)


def state_bytes(
    section: Section, group: Mapping[str, Any], parameter: Tensor, state: Mapping[str, Any]
) -> int:
    """Return the bytes of a parameter's state: of the one it has, else of the one it will get."""
    if not state and not is_trained(parameter):
        return 0
    tensors = state or section.new_state(group, parameter.detach().to("meta"))
    return sum(t.numel() * t.element_size() for t in tensors.values())
