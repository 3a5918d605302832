"""The options of STAC's groups: defaults, checks, and what a state dict without them gets."""

from collections.abc import Mapping
from typing import Any

from stam_core import ROLES, STACHyperparams, STACRole
from torch import Tensor

from stac_torch._dtypes import INT4, INT8, dtype_name
from stac_torch._family import Family
from stac_torch._fused import check_fused_group
from stac_torch._options import check_flags, check_numbers, check_parameters, checked_betas
from stac_torch._sections import AdamWSection, SignSection

# Bumped when the meaning of a group or of a state key changes; `_legacy` reads older ones.
FORMAT = 1

# Torch's names for what stam_core calls otherwise.
_NAMES = {"learning_rate": "lr", "b1": "betas[0]", "b2": "betas[1]"}


def checked_group(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return a complete group with its values checked and its dtypes in canonical form.

    Args:
        group: A group with every key of STAC's.

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
    betas = checked_betas(group["betas"])
    same = ("sign_momentum", "sign_lr_scale", "eps", "weight_decay")
    check_stac_numbers(
        learning_rate=group["lr"],
        b1=betas[0],
        b2=betas[1],
        **{name: group[name] for name in same},
    )
    check_flags(group, "amsgrad")
    check_fused_group(group)
    tensor_lr = isinstance(group["lr"], Tensor)
    if tensor_lr and group["foreach"] and not group["capturable"] and role == "adamw":
        msg = (
            "lr as a Tensor is not supported for capturable=False and foreach=True in the AdamW "
            "section: leave foreach at None, or set capturable=True"
        )
        raise ValueError(msg)
    checked = dict(group)
    checked["betas"] = betas
    for key, codes in (("sign_state_dtype", (INT8, INT4)), ("adamw_state_dtype", (INT8,))):
        checked[key] = dtype_name(key, group[key], codes=codes)
    check_parameters(checked, FAMILY.section(checked))
    return checked


def check_stac_numbers(**values: Any) -> None:
    """Check numbers by the ranges of ``stam_core``, under torch's names."""
    check_numbers(STACHyperparams, _NAMES, values)


def section_decay(shared: float, sign: float | None, adamw: float | None) -> dict[STACRole, float]:
    """Return the weight decay of each section.

    Raises:
        ValueError: One is out of range.
        TypeError: One is not a number.
    """
    check_stac_numbers(weight_decay=shared, sign_weight_decay=sign, adamw_weight_decay=adamw)
    return {
        "sign": shared if sign is None else sign,
        "adamw": shared if adamw is None else adamw,
    }


FAMILY = Family(
    name="STAC",
    sections={"sign": SignSection(), "adamw": AdamWSection()},
    defaults={
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
    },
    check=checked_group,
    format=("stac_format", FORMAT),
)
