"""The state of one parameter: what a step creates, and what it costs.

Keys, as in ``torch.optim``: the sign section has ``exp_avg`` (with ``exp_avg_scale`` if it is int8,
nothing without momentum), the AdamW section ``step``, ``exp_avg``, ``exp_avg_sq`` and, with
amsgrad, ``max_exp_avg_sq``. Stochastic rounding adds ``step`` to the sign section.
"""

from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

from stac_torch._dtypes import INT8, check_state_dtype, state_dtype
from stac_torch._int8 import is_quantized
from stac_torch._layers import is_trained
from stac_torch._local import local, scale_like


def rounds_stochastically(group: Mapping[str, Any], parameter: Tensor) -> bool:
    """Tell whether a parameter of a group is rounded stochastically."""
    return group["stochastic_rounding"] and parameter.dtype is torch.bfloat16


def new_state(group: Mapping[str, Any], parameter: Tensor) -> dict[str, Tensor]:
    """Return the state of a parameter before its first step; empty if it needs none."""
    # Once more: when the group was checked, this parameter may have been frozen.
    check_state_dtype(group, parameter)
    state: dict[str, Tensor] = {}
    if group["role"] == "adamw" or rounds_stochastically(group, parameter):
        state["step"] = new_step(group, parameter)
    if group["role"] == "sign":
        if group["sign_momentum"] != 0:
            state.update(_new_momentum(group["sign_state_dtype"], parameter))
        return state
    keys = ["exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if group["amsgrad"] else [])]
    for key in keys:
        state[key] = _zeros(parameter, state_dtype(group["adamw_state_dtype"], parameter))
    return state


def complete_state(
    group: Mapping[str, Any], parameter: Tensor, state: MutableMapping[str, Tensor]
) -> None:
    """Give a state what the group's options ask for now and did not when it was made."""
    if rounds_stochastically(group, parameter) and "step" not in state:
        state["step"] = new_step(group, parameter)
    if group["role"] == "sign":
        if group["sign_momentum"] != 0 and "exp_avg" not in state:
            state.update(_new_momentum(group["sign_state_dtype"], parameter))
    elif group["amsgrad"] and "max_exp_avg_sq" not in state:
        state["max_exp_avg_sq"] = torch.zeros_like(state["exp_avg_sq"])


def new_step(group: Mapping[str, Any], parameter: Tensor) -> Tensor:
    """Return the counter of a parameter before its first step."""
    return torch.zeros((), dtype=step_dtype(group), device=step_device(group, parameter))


def step_dtype(group: Mapping[str, Any]) -> torch.dtype:
    """Return the dtype of counters, as torch chooses it: float64 where that is the default dtype.

    Kernels read float32.
    """
    double = torch.get_default_dtype() is torch.float64 and not group["fused"]
    return torch.float64 if double else torch.float32


def step_device(group: Mapping[str, Any], parameter: Tensor) -> torch.device:
    """Return where the counter of a parameter lives."""
    # On the host it costs no launch; graphs and kernels need it on the device.
    on_device = group["capturable"] or group["fused"]
    return local(parameter).device if on_device else torch.device("cpu")


def _new_momentum(name: str | None, parameter: Tensor) -> dict[str, Tensor]:
    if name != INT8:
        return {"exp_avg": _zeros(parameter, state_dtype(name, parameter))}
    if not is_quantized(parameter):
        return {"exp_avg": _zeros(parameter, torch.float32)}
    return {"exp_avg": _zeros(parameter, torch.int8), "exp_avg_scale": scale_like(parameter)}


def _zeros(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros_like(parameter, dtype=dtype, memory_format=torch.preserve_format)


def state_bytes(group: Mapping[str, Any], parameter: Tensor, state: Mapping[str, Any]) -> int:
    """Return the bytes of a parameter's state: of the one it has, else of the one it will get."""
    if not state and not is_trained(parameter):
        return 0
    tensors = state or new_state(group, parameter.detach().to("meta"))
    return sum(t.numel() * t.element_size() for t in tensors.values())
