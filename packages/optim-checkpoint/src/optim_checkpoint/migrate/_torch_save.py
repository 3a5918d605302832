"""Files of `torch.save`: a dict of state dicts, told apart by what they are made of."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from optim_checkpoint._data import is_given_name
from optim_checkpoint._errors import UnsupportedStateError, shown
from optim_checkpoint.migrate._found import Found, listed
from optim_checkpoint.migrate._generators import generators, plain
from optim_checkpoint.migrate._safe import load, mapping

Keys = Mapping[str, str | Sequence[str]]
ROLES = ("model", "optimizer", "scheduler", "scaler")
_EXTRA_STATE = "_extra_state"
# Beside the state dicts, in what `write` writes.
_STEP, _RNG, _NAMES, _KINDS, _EXTRA = "step", "rng", "optimizer_names", "optimizer_class", "extra"
_OURS = "optim_checkpoint_export"


def role_of(value: object) -> str | None:
    """Say what a state dict is of, by its keys; None for anything else.

    >>> role_of({"state": {}, "param_groups": []}), role_of({"last_epoch": 3, "_step_count": 4})
    ('optimizer', 'scheduler')
    """
    if not isinstance(value, Mapping) or not value:
        return None
    keys = value.keys()
    if keys >= {"state", "param_groups"}:
        return "optimizer"
    if "last_epoch" in keys and keys & {"_step_count", "num_bad_epochs", "_schedulers"}:
        return "scheduler"
    if keys >= {"scale", "growth_factor", "backoff_factor", "growth_interval"}:
        return "scaler"
    if all(isinstance(key, str) for key in keys) and all(
        isinstance(item, torch.Tensor) or key.endswith(_EXTRA_STATE) for key, item in value.items()
    ):
        return "model"
    return None


def read(source: Path, keys: Keys) -> Found:
    """Read a file of `torch.save`.

    Raises:
        UnsupportedStateError: If it holds pickled objects, or does not say which part is what.
        CorruptCheckpointError: If it is damaged.
    """
    return sort_parts(mapping(load(source), str(source)), source, keys)


def sort_parts(loaded: dict[Any, Any], source: Path, keys: Keys, format_: str = "torch") -> Found:
    """Find model, optimizers, schedulers and scalers among what was loaded.

    Args:
        loaded: What was loaded.
        source: Where from, for errors.
        keys: Which keys stand for what; what is not given is found by its form.
        format_: Where it is from.
    """
    found = Found(format_)
    whole = role_of(loaded)
    if whole in ("optimizer", "scheduler", "scaler"):
        raise UnsupportedStateError(str(source), f"holds the state of one {whole} and no model")
    if whole == "model" and not keys:
        found.model = dict(loaded)
        return _noted(found)
    ours = _OURS in loaded
    chosen = _by_role(loaded, source, keys)
    models = chosen.pop("model")
    for key in models:
        entries = mapping(loaded[key], f"{source}, {shown(key)}")
        prefix = f"{key}." if len(models) > 1 else ""
        found.model |= {f"{prefix}{name}": value for name, value in entries.items()}
    parts = {
        "optimizer": found.optimizers,
        "scheduler": found.schedulers,
        "scaler": found.scalers,
    }
    for what, names in chosen.items():
        for key in names:
            label = "" if len(names) == 1 and "/" not in key else key.rpartition("/")[2]
            if label and not is_given_name(label):
                raise UnsupportedStateError(f"{source}, {shown(key)}", "cannot be a name")
            parts[what][label] = mapping(loaded[key], f"{source}, {shown(key)}")
    used = {*models, *(key for names in chosen.values() for key in names)}
    rest = {key: value for key, value in loaded.items() if key not in used}
    if ours:
        _read_own(found, rest, source)
    else:
        found.extra = rest
    return _noted(found)


def _by_role(loaded: Mapping[Any, Any], source: Path, keys: Keys) -> dict[str, list[Any]]:
    given = {role: [key] if isinstance(key, str) else list(key) for role, key in keys.items()}
    for role, names in given.items():
        if role not in ROLES:
            raise ValueError(f"keys has {role!r}; it may have {', '.join(ROLES)}")
        for key in names:
            if key not in loaded:
                raise UnsupportedStateError(
                    str(source), f"has no {shown(key)} for the {role}; it has {listed(loaded)}"
                )
    taken = {key for names in given.values() for key in names}
    forms = {key: role_of(value) for key, value in loaded.items() if key not in taken}
    found: dict[str, list[Any]] = {}
    for role in ROLES:
        own = [key for key, form in forms.items() if form == role and type(key) is str]
        found[role] = given.get(role, own)
        if role == "model" and role not in given and len(own) != 1:
            which = f"{listed(own)} all look like one" if own else f"it has {listed(loaded)}"
            raise UnsupportedStateError(
                str(source),
                f"does not say which part is the model: {which}; give keys={{'model': ...}} "
                "(--key model=...)",
            )
    return found


def _read_own(found: Found, rest: dict[Any, Any], source: Path) -> None:
    """Take what `write` wrote beside the state dicts."""
    found.step = rest.get(_STEP)
    found.kinds = mapping(rest.get(_KINDS, {}), str(source))
    found.names = mapping(rest.get(_NAMES, {}), str(source))
    found.extra = mapping(rest.get(_EXTRA, {}), str(source))
    rng = rest.get(_RNG)
    if rng is not None:
        state = mapping(rng, str(source))
        found.rng = generators(
            state.get("torch"),
            state.get("python"),
            state.get("numpy"),
            state.get("cuda"),
            str(source),
        )


def _noted(found: Found) -> Found:
    if found.model and all(name.startswith("module.") for name in found.model):
        found.notes.append(
            'model: every name starts with "module.", as DistributedDataParallel names them: '
            'restore with rename={"module": ""}'
        )
    return found


def document(found: Found) -> dict[str, Any]:
    """Return what `write` saves, of tensors, numbers, text and containers alone."""
    result: dict[str, Any] = {_OURS: 1, _STEP: found.step, "model": found.model}
    for what, states in (
        ("optimizer", found.optimizers),
        ("scheduler", found.schedulers),
        ("scaler", found.scalers),
    ):
        result |= {f"{what}/{name}" if name else what: state for name, state in states.items()}
    result |= {_NAMES: found.names, _KINDS: found.kinds, _EXTRA: found.extra}
    if found.rng is not None:
        result[_RNG] = plain(found.rng)
    return result


def write(found: Found, target: Path) -> None:
    """Write a file that ``torch.load(target, weights_only=True)`` loads."""
    torch.save(document(found), target)
