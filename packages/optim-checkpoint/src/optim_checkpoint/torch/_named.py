"""One model, optimizer or scheduler, or several by name."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, cast

import torch

from optim_checkpoint._data import is_given_name
from optim_checkpoint._errors import shown
from optim_checkpoint.torch._names import unwrap

T = TypeVar("T")
# The name of what was given alone; no name of several is empty.
ALONE = ""
_OPTIMIZER = ("param_groups", "state", "state_dict", "load_state_dict")
_STATEFUL = ("state_dict", "load_state_dict")


def by_name(what: str, value: T | Mapping[str, T] | None) -> dict[str, T]:
    """Return what was given by name, or under `ALONE` where it has none.

    Args:
        what: The argument: "model", "optimizer", "scheduler" or "scaler".
        value: One object, a mapping of names to objects, or None.

    Raises:
        TypeError: For anything else. A list is refused and not numbered: two optimizers of one kind
            and of equal shapes would trade their states, unnoticed, when its order changes.
    """
    if value is None:
        return {}
    if isinstance(value, list | tuple | set | frozenset):
        raise TypeError(
            f"{what} is a {type(value).__name__} of {len(value)}: give each a name that stays, as "
            f'in {what}={{"generator": ..., "critic": ...}}'
        )
    several = isinstance(value, Mapping) and not hasattr(value, "state_dict")
    named: dict[Any, Any] = dict(cast("Mapping[str, T]", value)) if several else {ALONE: value}
    if not named:
        raise TypeError(f"{what} is an empty mapping; leave it out where there is none")
    for name, item in named.items():
        if several and not is_given_name(name):
            raise TypeError(
                f"{what} has the name {shown(name)}; a name is printable text without '.' and '/'"
            )
        _check(f"{what}[{shown(name)}]" if several else what, what, item)
    return named


def _check(where: str, what: str, value: object) -> None:
    kind = type(value).__name__
    if what == "model":
        if not isinstance(value, torch.nn.Module):
            raise TypeError(f"{where} is a {kind}; it has to be a torch.nn.Module")
        return
    needed = _OPTIMIZER if what == "optimizer" else _STATEFUL
    lacking = [attribute for attribute in needed if not hasattr(value, attribute)]
    if lacking:
        advice = "; give the torch.optim.Optimizer inside it" if what == "optimizer" else ""
        raise TypeError(f"{where} is a {kind}, which has no {' and no '.join(lacking)}{advice}")


def key(what: str, name: str) -> str:
    """Return under which key a checkpoint has it.

    Example:
        >>> key("optimizer", ALONE), key("optimizer", "critic")
        ('optimizer', 'optimizer/critic')
    """
    return what if name == ALONE else f"{what}/{name}"


def keys_of(what: str, keys: Iterable[str]) -> list[str]:
    """Return those of some keys that are of one argument."""
    return [each for each in keys if each == what or each.startswith(f"{what}/")]


def name_in(what: str, key: str) -> str:
    """Return the name in a key that `key` returned."""
    return key.removeprefix(what).removeprefix("/")


def key_differences(what: str, step: int, there: Iterable[str], here: Iterable[str]) -> list[str]:
    """List what of several is only in the checkpoint or only here.

    Args:
        what: The argument.
        step: The step of the checkpoint.
        there: The keys of the checkpoint.
        here: The names given; where there are none, nothing is asked of the checkpoint.

    Example:
        >>> key_differences("optimizer", 3, ["optimizer/g"], ["g"])
        []
        >>> key_differences("optimizer", 3, ["optimizer"], ["g"])
        ['the checkpoint of step 3 holds no optimizer/g, it holds optimizer']
    """
    wanted = {key(what, name) for name in here}
    present = set(keys_of(what, there))
    if not wanted or wanted == present:
        return []
    which = f"the checkpoint of step {step} holds"
    held = f", it holds {', '.join(sorted(present))}" if present else ""
    differences = [f"{which} no {each}{held}" for each in sorted(wanted - present)]
    if wanted & present:
        differences += [
            f"{which} {each}, which was not asked for: give all or none"
            for each in sorted(present - wanted)
        ]
    return differences


class _Models(torch.nn.Module):
    """Several modules under their names, as a `torch.nn.ModuleDict` without forbidden names."""

    def __init__(self, models: Mapping[str, torch.nn.Module]) -> None:
        super().__init__()
        self._modules.update({name: unwrap(model) for name, model in models.items()})


def one_model(
    value: torch.nn.Module | Mapping[str, torch.nn.Module] | None,
) -> torch.nn.Module | None:
    """Return the module, or one that holds several: their names come before those inside.

    Raises:
        TypeError: As `by_name`.
    """
    named = by_name("model", value)
    return named.get(ALONE) if ALONE in named or not named else _Models(named)
