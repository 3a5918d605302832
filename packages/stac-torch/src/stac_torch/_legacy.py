"""State dicts of other optimizers: those of stac-optimizer 0.1.5 load, AdamW's are refused."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from stam_core import HYBRID_SIGN_LR_SCALE

_RENAMED = {"sign_momentum_buffer": "exp_avg"}
_DROPPED = (
    "stac_role",
    "layer_names",
    "error_if_nonfinite",
    "sign_weight_decay",
    "adamw_weight_decay",
)


def is_published(state_dict: Mapping[str, Any]) -> bool:
    """Tell whether a state dict was saved by the published package."""
    return any("stac_role" in group for group in state_dict["param_groups"])


def from_published(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Translate a state dict of the published package.

    There the sign group's ``lr`` is the scaled one; here every group has the public one, and the
    ratio of the two becomes ``sign_lr_scale``, whatever schedulers made of it.
    """
    groups = [dict(group) for group in state_dict["param_groups"]]
    public = next((g for g in groups if g["stac_role"] == "adamw"), None)
    scale = _ratio(groups, public)
    for group in groups:
        if group["stac_role"] == "sign" and public is not None:
            for key in ("lr", "initial_lr"):
                if key in group and key in public:
                    group[key] = public[key]
        dtype = group.get("sign_state_dtype")
        group |= {
            "role": group["stac_role"],
            "sign_lr_scale": scale,
            "sign_state_dtype": None if dtype is None else str(dtype).removeprefix("torch."),
        }
        for key in _DROPPED:
            group.pop(key, None)
    state = {
        key: {_RENAMED.get(name, name): value for name, value in entry.items()}
        for key, entry in state_dict["state"].items()
    }
    return {"state": state, "param_groups": groups}


def _ratio(groups: list[dict[str, Any]], public: dict[str, Any] | None) -> float:
    sign = next((g for g in groups if g["stac_role"] == "sign"), None)
    if sign is None or public is None:
        return 1.0
    own, shared = float(sign["lr"]), float(public["lr"])
    if shared == 0 or math.isclose(own, HYBRID_SIGN_LR_SCALE * shared, rel_tol=1e-6):
        return HYBRID_SIGN_LR_SCALE
    return own / shared


def refuse_adamw(state_dict: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> None:
    """Say so where AdamW's state meets a sign section, which has no place for it."""
    roles = {"role", "stac_role"}.intersection(*map(set, state_dict["param_groups"]))
    second = any("exp_avg_sq" in s for s in state_dict["state"].values() if isinstance(s, Mapping))
    if not roles and second and any(group["role"] == "sign" for group in groups):
        msg = (
            "the state dict is AdamW's: its groups have no role and its states second moments, "
            "which the sign section does not keep. Start the optimizer anew, the parameters stay; "
            "or build it all on AdamW (role='adamw'), which loads this state"
        )
        raise ValueError(msg)
