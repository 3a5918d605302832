"""The options of a parameter group: defaults, checks, and what a state dict without them gets."""

from collections.abc import Mapping
from typing import Any

import torch
from stam_core import ROLES, STACHyperparams
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from stac_torch._dtypes import check_state_dtype, dtype_name
from stac_torch._fused import check_fused_group
from stac_torch._hosts import refuse_flat
from stac_torch._layers import is_trained

# Bumped when the meaning of a group or of a state key changes; `_legacy` reads older ones.
FORMAT = 1

GROUP_DEFAULTS: Mapping[str, Any] = {
    "role": None,
    "lr": 1e-3,
    "weight_decay": 0.0,
    "sign_momentum": 0.9,
    "sign_lr_scale": 1.0,
    "sign_state_dtype": None,
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "amsgrad": False,
    "adamw_state_dtype": None,
    "maximize": False,
    "stochastic_rounding": False,
    "rounding_seed": 0,
    "foreach": None,
    "fused": None,
    "capturable": False,
    "stac_format": FORMAT,
}

# Torch's names for what stam_core calls otherwise.
_TORCH_NAMES = {"learning_rate": "lr", "b1": "betas[0]", "b2": "betas[1]"}


def checked_group(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return a complete group with its values checked and its dtypes in canonical form.

    Args:
        group: A group with every key of ``GROUP_DEFAULTS``.

    Raises:
        ValueError: A value is out of range, two exclude each other, or the role is missing.
        TypeError: A value has the wrong type.
    """
    role = group["role"]
    if role is None:
        msg = (
            "STAC cannot tell which section these parameters belong to: pass the model, its "
            "named_parameters(), groups with a 'role' ('sign' or 'adamw'), or role= for all of them"
        )
        raise ValueError(msg)
    if role not in ROLES:
        msg = f"role must be 'sign' or 'adamw', got {role!r}"
        raise ValueError(msg)
    lr = group["lr"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        msg = "Tensor lr must be 1-element"
        raise ValueError(msg)
    betas = group["betas"]
    betas = tuple(betas) if isinstance(betas, (tuple, list)) else (betas,)
    if len(betas) != 2:
        msg = f"betas must be two numbers, got {group['betas']!r}"
        raise ValueError(msg)
    numbers = {
        "sign_momentum": group["sign_momentum"],
        "sign_lr_scale": group["sign_lr_scale"],
        "b1": betas[0],
        "b2": betas[1],
        "eps": group["eps"],
        "weight_decay": group["weight_decay"],
    }
    for name, value in numbers.items():
        if isinstance(value, Tensor):
            msg = (
                f"{_TORCH_NAMES.get(name, name)} must be a number, got a tensor: only lr may be one"
            )
            raise TypeError(msg)
    check_hyperparameters(learning_rate=readable(lr), **numbers)
    check_flags(group)
    checked = dict(group)
    checked["betas"] = betas
    for key, int8 in (("sign_state_dtype", True), ("adamw_state_dtype", False)):
        checked[key] = dtype_name(key, group[key], int8=int8)
    check_parameters(checked)
    return checked


def readable(lr: Any) -> Any:
    """Return a learning rate as a number, where a tensor of one has values to read."""
    unread = not isinstance(lr, Tensor) or lr.is_meta or torch.compiler.is_compiling()
    return lr if unread or isinstance(lr, FakeTensor) else lr.item()


def check_hyperparameters(**numbers: Any) -> None:
    """Check numbers by the ranges of ``stam_core``, under torch's names."""
    try:
        STACHyperparams(**numbers)
    except (ValueError, TypeError) as error:
        text = str(error)
        for core, torch_name in _TORCH_NAMES.items():
            text = text.replace(f"{core} must", f"{torch_name} must")
        raise type(error)(text) from None


def check_flags(group: Mapping[str, Any]) -> None:
    """Check the flags of a group and their combinations."""
    for key in ("amsgrad", "maximize", "stochastic_rounding", "capturable"):
        if not isinstance(group[key], bool):
            msg = f"{key} must be True or False, got {group[key]!r}"
            raise TypeError(msg)
    if group["foreach"] not in (None, True, False):
        msg = f"foreach must be None, True or False, got {group['foreach']!r}"
        raise TypeError(msg)
    if isinstance(group["rounding_seed"], bool) or not isinstance(group["rounding_seed"], int):
        msg = f"rounding_seed must be an integer, got {group['rounding_seed']!r}"
        raise TypeError(msg)
    check_fused_group(group)
    tensor_lr = isinstance(group["lr"], Tensor)
    if tensor_lr and group["foreach"] and not group["capturable"] and group["role"] == "adamw":
        msg = (
            "lr as a Tensor is not supported for capturable=False and foreach=True in the AdamW "
            "section: leave foreach at None, or set capturable=True"
        )
        raise ValueError(msg)


def check_parameters(group: Mapping[str, Any]) -> None:
    """Check that a group's parameters can have the states that its options ask for."""
    refuse_flat(group["params"])
    for parameter in group["params"]:
        if isinstance(parameter, Tensor) and is_trained(parameter):
            check_state_dtype(group, parameter)


def complete(group: dict[str, Any]) -> None:
    """Give a loaded group the options that it lacks, and groups of older names the new ones."""
    for key, default in GROUP_DEFAULTS.items():
        group.setdefault(key, default)
