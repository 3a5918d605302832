"""Schedulers keep lists with one entry per parameter group by position: these follow the groups."""

from collections.abc import Sequence
from typing import Any

# The lists of torch.optim.lr_scheduler that run parallel to optimizer.param_groups.
_PER_GROUP = {
    "base_lrs",
    "_last_lr",
    "lr_lambdas",
    "min_lrs",
    "max_lrs",
    "base_momentums",
    "max_momentums",
    "default_min_lr",
    "swa_lrs",
}


def regroup(state: Any, origins: Sequence[int], groups: int) -> Any:
    """Return a scheduler's state with its per-group lists in the live order of the groups.

    Args:
        state: The decoded state dict, with those of inner schedulers inside.
        origins: For each live group the index of the saved group it comes from.
        groups: How many groups were saved.

    Returns:
        The state; where the groups are as they were, equal to what was given.

    Example:
        >>> regroup({"base_lrs": [0.1, 0.2], "last_epoch": 3}, [1, 0], 2)
        {'base_lrs': [0.2, 0.1], 'last_epoch': 3}
    """
    if isinstance(state, dict):
        return {
            key: [value[origin] for origin in origins]
            if key in _PER_GROUP and isinstance(value, list) and len(value) == groups
            else regroup(value, origins, groups)
            for key, value in state.items()
        }
    if isinstance(state, list):
        return [regroup(item, origins, groups) for item in state]
    return state
