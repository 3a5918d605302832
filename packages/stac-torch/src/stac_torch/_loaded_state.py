"""What a saved state of one parameter must hold before it is loaded."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from stac_torch._codes import code_name, is_coded, scale_shape, stored_shape
from stac_torch._family import Section


def check_state(
    where: str,
    state: Mapping[str, Any],
    parameter: Tensor,
    section: Section,
    options: Mapping[str, Any],
) -> None:
    """Raise unless a saved state is whole and fits its parameter.

    Args:
        where: How messages call the parameter.
        state: Its saved state, not empty.
        parameter: The parameter.
        section: Its update.
        options: Its group as it will be after loading.

    Raises:
        ValueError: A key is unknown or missing, or a value is not what its key needs.
    """
    unknown = sorted(set(state) - section.keys)
    if unknown:
        msg = f"{where} has the state {unknown}, which {section.title} does not know"
        raise ValueError(msg)
    missing = sorted(section.required(options, state) - set(state))
    if missing:
        msg = (
            f"{where} lacks the state {missing}, which {section.title} needs: the state dict "
            "is damaged or another optimizer's. Load a whole one, or delete the state of this "
            "parameter from it to start it anew"
        )
        raise ValueError(msg)
    for key, value in state.items():
        if key in section.numbers:
            _check_number(where, key, value, parameter)
        elif not isinstance(value, Tensor):
            msg = f"{where}: saved {key} must be a tensor, got {value!r}"
            raise ValueError(msg)
    for key in section.keys & {f"{key}_scale" for key in section.keys}:
        _check_code(where, key.removesuffix("_scale"), state, parameter)
    for key, value in state.items():
        if key not in section.numbers:
            wanted = (
                "complex" if parameter.is_complex() and key not in section.reals else "floating"
            )
            _check_shape(where, key, state, parameter)
            fits = value.is_complex() if wanted == "complex" else value.is_floating_point()
            if not fits and f"{key}_scale" not in state:
                msg = f"{where}: saved {key} is {value.dtype}, the parameter needs a {wanted} dtype"
                raise ValueError(msg)


def _check_code(where: str, key: str, state: Mapping[str, Any], parameter: Tensor) -> None:
    moment, scale = state.get(key), state.get(f"{key}_scale")
    name = None if moment is None else code_name(moment, parameter.shape)
    if (name is None) != (scale is None):
        msg = (
            f"{where}: an {name or 'int8'} {key} and {key}_scale come together, got {sorted(state)}"
        )
        raise ValueError(msg)
    if name is not None and not is_coded(parameter):
        msg = (
            f"{where}: saved {key} is in {name}, which a parameter of shape "
            f"{tuple(parameter.shape)} and {parameter.dtype} has no code in: the model has changed"
        )
        raise ValueError(msg)


def _check_number(where: str, key: str, value: Any, parameter: Tensor) -> None:
    if isinstance(value, Tensor):
        counts = key == "step" or not parameter.is_complex()
        fits = value.numel() == 1 and not (value.is_complex() and counts)
        fits = fits and value.dtype is not torch.bool
    else:
        fits = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not fits:
        shown = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
        msg = f"{where}: saved {key} must be one number, got {shown}"
        raise ValueError(msg)


def _check_shape(where: str, key: str, state: Mapping[str, Any], parameter: Tensor) -> None:
    value, moment = state[key], state.get(key.removesuffix("_scale"))
    shape = tuple(parameter.shape)
    if key.endswith("_scale") and moment is not None:
        shape = scale_shape(moment, parameter.shape)
    elif f"{key}_scale" in state:
        shape = stored_shape(value, parameter.shape)
    if tuple(value.shape) != shape:
        msg = (
            f"{where}: saved {key} has shape {tuple(value.shape)}, the parameter needs "
            f"{shape}: the model has changed"
        )
        raise ValueError(msg)
