"""What a saved state of one parameter must hold before it is loaded."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from stac_torch._int8 import scale_shape

_KEYS = {
    "sign": frozenset({"exp_avg", "exp_avg_scale", "step"}),
    "adamw": frozenset({"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "step"}),
}


def check_state(
    where: str, state: Mapping[str, Any], parameter: Tensor, options: Mapping[str, Any]
) -> None:
    """Raise unless a saved state is whole and fits its parameter.

    Args:
        where: How messages call the parameter.
        state: Its saved state, not empty.
        parameter: The parameter.
        options: Its group as it will be after loading.

    Raises:
        ValueError: A key is unknown or missing, or a value is not what its key needs.
    """
    role = options["role"]
    unknown = sorted(set(state) - _KEYS[role])
    if unknown:
        msg = f"{where} has the state {unknown}, which the {role} section does not know"
        raise ValueError(msg)
    missing = sorted(_required(state, options) - set(state))
    if missing:
        msg = (
            f"{where} lacks the state {missing}, which the {role} section needs: the state dict "
            "is damaged or another optimizer's. Load a whole one, or delete the state of this "
            "parameter from it to start it anew"
        )
        raise ValueError(msg)
    for key, value in state.items():
        if key == "step":
            _check_step(where, value)
        elif not isinstance(value, Tensor):
            msg = f"{where}: saved {key} must be a tensor, got {value!r}"
            raise ValueError(msg)
    exp_avg = state.get("exp_avg")
    quantized = exp_avg is not None and exp_avg.dtype is torch.int8
    if quantized != ("exp_avg_scale" in state):
        msg = f"{where}: an int8 exp_avg and exp_avg_scale come together, got {sorted(state)}"
        raise ValueError(msg)
    for key, value in state.items():
        if key != "step":
            _check_moment(where, key, value, parameter, quantized=quantized and key == "exp_avg")


def _required(state: Mapping[str, Any], options: Mapping[str, Any]) -> set[str]:
    if options["role"] == "adamw":
        return {"step", "exp_avg", "exp_avg_sq"} | (
            {"max_exp_avg_sq"} if options["amsgrad"] else set()
        )
    # Stochastic rounding without momentum leaves a counter alone, and momentum may have been raised
    # from 0 between the last step and the save.
    counter_alone = options["stochastic_rounding"] and set(state) == {"step"}
    return {"exp_avg"} if options["sign_momentum"] != 0 and not counter_alone else set()


def _check_step(where: str, value: Any) -> None:
    if isinstance(value, Tensor):
        fits = value.numel() == 1 and not value.is_complex() and value.dtype is not torch.bool
    else:
        fits = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not fits:
        shown = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
        msg = f"{where}: saved step must be one number, got {shown}"
        raise ValueError(msg)


def _check_moment(
    where: str, key: str, value: Tensor, parameter: Tensor, *, quantized: bool
) -> None:
    scaled = key == "exp_avg_scale"
    shape = scale_shape(parameter.shape) if scaled else tuple(parameter.shape)
    if tuple(value.shape) != shape:
        msg = (
            f"{where}: saved {key} has shape {tuple(value.shape)}, the parameter needs "
            f"{shape}: the model has changed"
        )
        raise ValueError(msg)
    wanted = "complex" if parameter.is_complex() and not scaled else "floating"
    fits = value.is_complex() if wanted == "complex" else value.is_floating_point()
    if not fits and not quantized:
        msg = f"{where}: saved {key} is {value.dtype}, the parameter needs a {wanted} dtype"
        raise ValueError(msg)
