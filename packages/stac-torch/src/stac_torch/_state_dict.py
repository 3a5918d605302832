"""Loading: everything is checked first, then every tensor is copied in the dtype it was saved in.

``torch.optim.Optimizer.load_state_dict`` casts each floating state to the parameter's dtype, which
makes float32 of a bfloat16 or int8 momentum; it shares tensors with the state dict, so that two
optimizers in one process step each other's moments; and it takes over how the saved one computed.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from stac_torch._family import Family
from stac_torch._layers import clean_name, is_trained
from stac_torch._layout import same_layout
from stac_torch._loaded_state import check_state
from stac_torch._local import is_dtensor, local
from stac_torch._state import step_device, step_dtype

# How this process computes, which is no business of the one that saved: it may have had a kernel
# or a GPU that this one lacks, or lacked what was asked for here.
_OWN = ("foreach", "fused", "capturable")

Names = Sequence["tuple[str, ...] | None"]


def check_state_dict(
    state_dict: Mapping[str, Any], groups: Sequence[Mapping[str, Any]], family: Family
) -> None:
    """Raise unless a state dict in the present format fits the optimizer's groups.

    Args:
        state_dict: What the user loads.
        groups: The optimizer's groups.
        family: The optimizer.

    Raises:
        ValueError: It does not fit: no groups, another number or size of groups, other roles, other
            shapes, keys of the other section, missing ones, or a newer format.
    """
    saved_groups = state_dict["param_groups"]
    if len(saved_groups) != len(groups):
        msg = (
            "loaded state dict has a different number of parameter groups: "
            f"{len(saved_groups)} saved, {len(groups)} here. Build the optimizer with the "
            "partition that was saved"
        )
        raise ValueError(msg)
    for index, (saved, group) in enumerate(zip(saved_groups, groups, strict=True)):
        _check_group(index, saved, group, state_dict["state"], family)
    for index, (saved, group) in enumerate(zip(saved_groups, groups, strict=True)):
        options = _options(saved, group, family)
        section = family.section(group)
        for position, (key, parameter) in enumerate(
            zip(saved["params"], group["params"], strict=True)
        ):
            state = state_dict["state"].get(key)
            if state:
                where = f"group {index}, parameter {position}"
                check_state(where, state, parameter, section, options)
                section.check(options, parameter)


def check_keys(state_dict: Mapping[str, Any]) -> None:
    """Raise unless a state dict is that of an optimizer.

    Raises:
        ValueError: It has no groups, or no state.
    """
    for key in ("param_groups", "state"):
        if key not in state_dict:
            msg = f"the state dict has no {key!r}: it is not that of an optimizer"
            raise ValueError(msg)


def _check_group(
    index: int,
    saved: Mapping[str, Any],
    group: Mapping[str, Any],
    state: Mapping[Any, Any],
    family: Family,
) -> None:
    if len(saved["params"]) != len(group["params"]):
        msg = (
            "loaded state dict contains a parameter group that doesn't match the size of "
            f"optimizer's group: group {index} has {len(saved['params'])} parameters saved, "
            f"{len(group['params'])} here{_frozen_hint(saved, group, state)}"
        )
        raise ValueError(msg)
    here = group.get("role")
    role = saved.get("role", here)
    if role != here:
        msg = (
            f"group {index} was saved with role {role!r} and has {here!r} here: build the "
            "optimizer with the partition that was saved"
        )
        raise ValueError(msg)
    key, newest = family.format
    version = saved.get(key, newest)
    if version > newest:
        msg = (
            f"group {index} was saved in format {version}, this release reads up to {newest}: "
            "install a newer stac-torch"
        )
        raise ValueError(msg)


def _frozen_hint(
    saved: Mapping[str, Any], group: Mapping[str, Any], state: Mapping[Any, Any]
) -> str:
    """Say what to do if frozen parameters, which one of the two left out, are the difference."""
    more = len(group["params"]) - len(saved["params"])
    if more > 0 and more == sum(not is_trained(p) for p in group["params"]):
        return (
            f", {more} of them frozen, which the saved one left out: build the optimizer with "
            "hold_frozen=False"
        )
    if more < 0 and -more == sum(not state.get(key) for key in saved["params"]):
        return (
            f". {-more} of those saved have no state, as frozen parameters have none: build the "
            "optimizer without hold_frozen=False"
        )
    return ""


def saved_names(state_dict: Mapping[str, Any]) -> list[tuple[str, ...] | None]:
    """Return the names in a state dict, group by group: ours, or torch's within the groups.

    Those of others may have been taken from a wrapped model.
    """
    listed = state_dict.get("param_names")
    if listed is None:
        listed = [group.get("param_names") for group in state_dict["param_groups"]]
    return [tuple(map(clean_name, names)) if names else None for names in listed]


def check_names(saved: Names | None, own: Names) -> None:
    """Raise unless two lists of names agree wherever both have names.

    Raises:
        ValueError: They do not.
    """
    for index, (theirs, ours) in enumerate(zip(saved or (), own, strict=False)):
        if theirs is None or ours is None or tuple(theirs) == tuple(ours):
            continue
        pairs = zip(theirs, ours, strict=False)
        first = next(((a, b) for a, b in pairs if a != b), (theirs, ours))
        msg = (
            f"group {index} was saved for other parameters: {first[0]!r} there is {first[1]!r} "
            "here. Build the optimizer for the model that was saved"
        )
        raise ValueError(msg)


def rebuilt(
    state_dict: Mapping[str, Any], groups: Sequence[Mapping[str, Any]], family: Family
) -> dict[str, Any]:
    """Return the state and groups that an optimizer has after loading a checked state dict."""
    saved_groups = state_dict["param_groups"]
    owned = {key for saved in saved_groups for key in saved["params"]}
    # What belongs to no parameter is kept as it is, as torch does.
    state = defaultdict(dict, {k: v for k, v in state_dict["state"].items() if k not in owned})
    new_groups: list[dict[str, Any]] = []
    for saved, group in zip(saved_groups, groups, strict=True):
        options = deepcopy(_options(saved, group, family))
        numbers = family.section(group).numbers
        for key, parameter in zip(saved["params"], group["params"], strict=True):
            saved_state = state_dict["state"].get(key)
            if saved_state:
                state[parameter] = {
                    name: placed_number(name, value, parameter, options)
                    if name in numbers
                    else placed(name, value, parameter)
                    for name, value in saved_state.items()
                }
        new_groups.append({"params": group["params"], **options})
    return {"state": state, "param_groups": new_groups}


def _options(saved: Mapping[str, Any], group: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """Return the options of a group after loading."""
    left = ("params", "param_names", "differentiable", *_OWN)
    options = {key: value for key, value in saved.items() if key not in left}
    # What the saved group does not say, because it is older or another optimizer's, stays.
    return {key: group[key] for key in family.defaults} | options


def placed_number(key: str, value: Any, parameter: Tensor, group: Mapping[str, Any]) -> Tensor:
    """Return a copy of a loaded number, which may have been saved as one of Python.

    Args:
        key: Its key; counters may live on the host.
        value: The number.
        parameter: Its parameter.
        group: The loaded group, which says where a counter lives.
    """
    number = torch.as_tensor(value).detach().reshape(())
    if key != "step":
        return number.to(local(parameter).device, copy=True)
    double = isinstance(value, Tensor) and value.dtype is torch.float64 and not group.get("fused")
    dtype = torch.float64 if double else step_dtype(group)
    return number.to(step_device(group, parameter), dtype, copy=True)


def placed(key: str, value: Tensor, parameter: Tensor) -> Tensor:
    """Return a copy of a loaded moment on its parameter's device, in its own dtype."""
    value = value.detach()
    if (
        value.shape == parameter.shape
        and not key.endswith("_scale")
        and is_dtensor(value) == is_dtensor(parameter)
        and not same_layout(value, parameter)
    ):
        # The kernels walk a parameter and its moments in one order of memory.
        return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
    return value.to(parameter.device, copy=True)
