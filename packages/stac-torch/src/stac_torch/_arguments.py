"""What the constructor takes, brought into one form."""

from typing import Any

from stam_core import STACRole
from torch import Tensor, nn

from stac_torch._layers import clean_name
from stac_torch._nonfinite import POLICIES, Policy


def materialized(params: Any, role: STACRole | None) -> tuple[Any, bool]:
    """Return the first argument with iterators made lists, and whether it is to be partitioned.

    Raises:
        ValueError: A model came with a role, or only some parameters have names.
    """
    if isinstance(params, nn.Module):
        if role is not None:
            msg = f"role={role!r} is for parameters, got a model: use last_n_layers instead"
            raise ValueError(msg)
        return params, True
    if isinstance(params, (Tensor, set)):
        return params, False
    entries = list(params)
    named = bool(entries) and isinstance(entries[0], tuple) and role is None
    if named:
        split_names(entries)
    return entries, named


def split_names(params: list[Any]) -> tuple[list[Any], tuple[str, ...] | None]:
    """Take the names off parameters that are given as (name, parameter).

    Raises:
        ValueError: Only some have names.
        TypeError: A named one is no tensor.
    """
    named = [entry for entry in params if isinstance(entry, tuple)]
    if not named:
        return params, None
    if len(named) != len(params):
        msg = "all optimizer params should be with/without names. Some param names are missing"
        raise ValueError(msg)
    for name, parameter in named:
        if not isinstance(parameter, Tensor):
            msg = f"optimizer can only optimize Tensors, but {name!r} is {type(parameter).__name__}"
            raise TypeError(msg)
    return [parameter for _, parameter in named], tuple(clean_name(name) for name, _ in named)


def refuse_partition_options(options: dict[str, Any]) -> None:
    """Raise if an option that chooses sections was given where every parameter has one already.

    Raises:
        ValueError: One was.
    """
    for name, value in options.items():
        empty = isinstance(value, (list, tuple)) and not value
        default = value is None or (value is False and name != "hold_frozen")
        if not default and not empty:
            msg = (
                f"{name}={value!r} partitions a model, got parameters that have a role: pass the "
                "model, or param_groups(model, ...)"
            )
            raise ValueError(msg)


def nonfinite_policy(nonfinite: Policy, *, error_if_nonfinite: bool) -> Policy:
    """Return the policy that the two options name together.

    Raises:
        ValueError: It is unknown, or the options disagree.
        TypeError: ``error_if_nonfinite`` is no boolean.
    """
    if not isinstance(error_if_nonfinite, bool):
        msg = (
            f"error_if_nonfinite must be True or False, got {error_if_nonfinite!r}: "
            "nonfinite='skip', 'raise' or 'propagate' says more"
        )
        raise TypeError(msg)
    if nonfinite not in POLICIES:
        msg = f"nonfinite must be 'skip', 'raise' or 'propagate', got {nonfinite!r}"
        raise ValueError(msg)
    if error_if_nonfinite:
        if nonfinite == "propagate":
            msg = (
                "error_if_nonfinite=True is nonfinite='raise', got nonfinite='propagate': give one"
            )
            raise ValueError(msg)
        nonfinite = "raise"
    return nonfinite


def skip_limit(value: int | None) -> int | None:
    """Return a checked ``max_consecutive_nonfinite``.

    Raises:
        ValueError: It is neither None nor an integer >= 1.
    """
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        msg = f"max_consecutive_nonfinite must be an integer >= 1 or None, got {value!r}"
        raise ValueError(msg)
    return value
