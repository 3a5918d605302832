"""Checks of a parameter group's options that all optimizers share."""

from collections.abc import Mapping
from typing import Any

import torch
from stam_core import Hyperparams
from torch import Tensor

from stac_torch._family import Section
from stac_torch._hosts import refuse_flat
from stac_torch._layers import is_trained
from stac_torch._local import has_values


def check_numbers(
    hyperparams: type[Hyperparams], names: Mapping[str, str], values: Mapping[str, Any]
) -> None:
    """Check numbers by the ranges of a rule, under torch's names.

    Args:
        hyperparams: The class that knows the ranges.
        names: Torch's names of what it calls otherwise.
        values: The values by its own names; ``learning_rate`` may be a tensor.

    Raises:
        ValueError: A value is out of range, or a learning rate has several.
        TypeError: A value has the wrong type; only ``lr`` may be a tensor.
    """
    for name, value in values.items():
        if isinstance(value, Tensor):
            if name != "learning_rate":
                called = names.get(name, name)
                msg = f"{called} must be a number, got a tensor: only lr may be one"
                raise TypeError(msg)
            if value.numel() != 1:
                msg = "Tensor lr must be 1-element"
                raise ValueError(msg)
    read = {name: readable(value) for name, value in values.items()}
    try:
        hyperparams(**read)
    except (ValueError, TypeError) as error:
        text = str(error)
        for core, torch_name in names.items():
            text = text.replace(f"{core} must", f"{torch_name} must")
        raise type(error)(text) from None


def readable(lr: Any) -> Any:
    """Return a learning rate as a number, where a tensor of one has values to read."""
    unread = not isinstance(lr, Tensor) or torch.compiler.is_compiling() or not has_values(lr)
    return lr if unread else lr.item()


def checked_betas(betas: Any) -> tuple[Any, Any]:
    """Return the two decays.

    Raises:
        ValueError: There are not two.
    """
    pair = tuple(betas) if isinstance(betas, (tuple, list)) else (betas,)
    if len(pair) != 2:
        msg = f"betas must be two numbers, got {betas!r}"
        raise ValueError(msg)
    return pair


def check_flags(group: Mapping[str, Any], *names: str) -> None:
    """Check the options that say how to compute, and further booleans.

    Raises:
        TypeError: One has the wrong type.
    """
    for key in (*names, "maximize", "stochastic_rounding", "capturable"):
        if not isinstance(group[key], bool):
            msg = f"{key} must be True or False, got {group[key]!r}"
            raise TypeError(msg)
    if group["foreach"] not in (None, True, False):
        msg = f"foreach must be None, True or False, got {group['foreach']!r}"
        raise TypeError(msg)
    if isinstance(group["rounding_seed"], bool) or not isinstance(group["rounding_seed"], int):
        msg = f"rounding_seed must be an integer, got {group['rounding_seed']!r}"
        raise TypeError(msg)


def check_parameters(group: Mapping[str, Any], section: Section) -> None:
    """Check that a group's parameters can have the states that its options ask for."""
    refuse_flat(group["params"])
    for parameter in group["params"]:
        if isinstance(parameter, Tensor) and is_trained(parameter):
            section.check(group, parameter)
