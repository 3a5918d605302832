"""Schedulers, scalers and anything with a state dict: compared, loaded, read back, taken back."""

import copy
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from optim_checkpoint._data import Stateful, look, put_back
from optim_checkpoint._errors import CheckpointWarning, IncompatibleCheckpointError, shown
from optim_checkpoint.torch._hyper import equal
from optim_checkpoint.torch._names import live_differences
from optim_checkpoint.torch._own_load import same
from optim_checkpoint.torch._scheduler import like_live

_PLAIN = (bool, int, float, complex, str, bytes, np.number, torch.Tensor)


def stateful_differences(name: str, saved: Any, live: Stateful) -> tuple[list[str], list[str]]:
    """List why an object cannot take a state, and how its keys differ, which its own load may take.

    The schedulers and scalers of torch take any keys into their attributes, wanted or not: of them
    keys that differ are among the first.
    """
    here = look(live)
    # An OrderedDict is stored as the dict it is, and `like_live` gives it its class back.
    kinds = [dict if isinstance(state, dict) else type(state) for state in (saved, here)]
    if kinds[0] is not kinds[1]:
        return [f"the {name} stored {type(saved).__name__}, not {type(here).__name__}"], []
    if not isinstance(saved, dict):
        return [], []
    # A key "0" is not the key 0, and prints alike.
    spelled = {str(key): key for key in here.keys() - saved.keys()}
    alike = {key: spelled[str(key)] for key in saved.keys() - here.keys() if str(key) in spelled}
    differences = [
        f"{name} entry {there}: the key is {type(there).__name__} in the checkpoint, "
        f"{type(key).__name__} here"
        for there, key in alike.items()
    ]
    keys = live_differences(
        f"{name} entry",
        map(str, saved.keys() - alike.keys()),
        map(str, here.keys() - set(alike.values())),
    )
    return ([*differences, *keys], []) if _is_torchs(live) else (differences, keys)


def _is_torchs(live: Stateful) -> bool:
    place = str(getattr(live.load_state_dict, "__module__", ""))
    return isinstance(live, torch.optim.lr_scheduler.LRScheduler) or place.startswith("torch.")


def load_stateful(
    name: str, live: Stateful, saved: Any, undo: Callable[[Callable[[], None]], object]
) -> None:
    """Load a state and read it back; `undo` receives what takes it back.

    Raises:
        IncompatibleCheckpointError: If the object does not have afterwards what it was given.
    """
    before = copy.deepcopy(look(live))
    fields = dict(getattr(live, "__dict__", {}))
    _, keys = stateful_differences(name, saved, live)
    undo(_snapshot(live, before))
    given = like_live(saved, before)
    try:
        live.load_state_dict(copy.copy(given))
    except Exception as error:
        if not keys:
            raise
        raise IncompatibleCheckpointError(
            [*keys, f"load_state_dict() of the {name} raised {type(error).__name__}: {error}"]
        ) from error
    # What is another one at each look, as a clock is, cannot be compared.
    now, again = live.state_dict(), live.state_dict()
    if not (isinstance(given, dict) and isinstance(now, dict)):
        changed = _differ(given, now) and not _differ(now, again)
        notes = [f"{name} was loaded as {shown(given)}, state_dict() has {shown(now)}"] * changed
    else:
        notes = [
            f"{name} entry {key} was loaded as {shown(value)}, state_dict() has {shown(now[key])}"
            for key, value in given.items()
            if key in now and _differ(value, now[key]) and not _differ(now[key], again.get(key))
        ]
        if given.keys() != now.keys() and (keys or given.keys() - now.keys()):
            notes += live_differences(f"{name} entry", map(str, given), map(str, now))
    # A stream of Hugging Face's datasets keeps what it is given until it is iterated.
    kept = (n for n, v in getattr(live, "__dict__", {}).items() if v is not fields.get(n))
    if notes and not any(same(getattr(live, n), given) for n in kept):
        raise IncompatibleCheckpointError(notes)


def _differ(one: Any, other: Any) -> bool:
    """Say whether two values are known to differ; what is not plain is not known."""
    if one is other:
        return False
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() != other.keys() or any(_differ(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) != len(other) or any(map(_differ, one, other))
    if one is None or other is None:
        return isinstance(one, _PLAIN) or isinstance(other, _PLAIN)
    return isinstance(one, _PLAIN) and isinstance(other, _PLAIN) and not equal(one, other)


def _snapshot(live: Stateful, state: Any) -> Callable[[], None]:
    fields = dict(getattr(live, "__dict__", {}))

    def take_back() -> None:
        # First the attributes, for a load that does not know of all; then what was changed in them.
        put_back(live, fields)
        try:
            if not same(live.state_dict(), state):
                live.load_state_dict(state)
        except Exception as error:  # noqa: BLE001 - user code, which may have raised before, too
            warnings.warn(
                f"load_state_dict() of the {type(live).__name__} refused what it had before; its "
                f"attributes were put back: {error}",
                CheckpointWarning,
                stacklevel=2,
            )
            put_back(live, fields)

    return take_back
