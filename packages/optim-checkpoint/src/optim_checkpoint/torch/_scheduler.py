"""Fitting the state of a scheduler to the live one: its groups, and the classes of its dicts."""

import copy
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


def like_live(state: Any, live: Any) -> Any:
    """Return a state with the classes of the dicts of a live one, which are stored as plain dicts.

    The `Counter` of a `MultiStepLR`, for one, has methods that the scheduler calls.

    Args:
        state: The decoded state dict.
        live: The state dict of the live object.

    Example:
        >>> from collections import Counter
        >>> like_live({"milestones": {4: 1}, "last_epoch": 3}, {"milestones": Counter()})
        {'milestones': Counter({4: 1}), 'last_epoch': 3}
    """
    if isinstance(state, dict) and isinstance(live, dict):
        items = {key: like_live(value, live.get(key)) for key, value in state.items()}
        if type(live) is dict:
            return items
        # Not type(live)(items): a defaultdict has its factory from the live one.
        result = copy.copy(live)
        result.clear()
        result.update(items)
        return result
    if type(state) is list and type(live) is list and len(state) == len(live):
        return [like_live(item, other) for item, other in zip(state, live, strict=True)]
    return state
