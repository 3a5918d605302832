"""Hyperparameters of parameter groups: compared, put into the live tensors, and read back."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from optim_checkpoint._errors import shown

# Keys that schedulers add to a group; a checkpoint may have them before the scheduler exists.
SCHEDULER_KEYS = {
    "initial_lr",
    "max_lr",
    "min_lr",
    "base_momentum",
    "max_momentum",
    "swa_lr",
}
STRUCTURAL = {"params", "param_names"}
# How a step is computed, not what: an optimizer may decide it by the machine it is on.
_EXECUTION = {"foreach", "fused", "capturable", "differentiable"}
_NUMBERS = (int, float, complex, np.number, torch.Tensor)
# By its id a tensor, which has to live as long as the id is asked for, and its new value.
Shared = dict[int, tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True, eq=False)
class SavedGroup:
    """A parameter group of the checkpoint.

    Attributes:
        params: The live names of those of its parameters that are loaded.
        hyper: Its hyperparameters.
        typed: The same as they are spelled in the manifest.
        emptied: Whether it had parameters and none of them is loaded.
    """

    params: tuple[str, ...]
    hyper: Mapping[str, Any]
    typed: Mapping[str, str]
    emptied: bool = False


def group_hyper(
    g: int, live: Mapping[str, Any], sources: Sequence[SavedGroup], *, same_class: bool
) -> tuple[dict[str, Any], list[str]]:
    """Return the hyperparameters of a live group, and why they cannot be set.

    Args:
        g: The number of the group.
        live: The group.
        sources: The saved groups that its parameters were in.
        same_class: Whether the saved optimizer was of the live one's class. What only the
            checkpoint has is then something that a step wrote.
    """
    result: dict[str, Any] = {}
    notes: list[str] = []
    for source in sources:
        for key, value in source.hyper.items():
            if key in result and source.typed[key] != sources[0].typed.get(key):
                notes.append(
                    f"group {g} merges groups that differ in {key}: give each its own group"
                )
            if key not in live and key not in SCHEDULER_KEYS and not same_class:
                notes.append(f"group {g} has no hyperparameter {shown(key)}, the checkpoint has")
            elif key in live and not _same_kind(value, live[key]):
                notes.append(
                    f"group {g}: {key} is {shown(value)} in the checkpoint, {shown(live[key])} here"
                )
            result[key] = value
    # Several sources may differ from the live group in the same way.
    return result, list(dict.fromkeys(notes))


def _same_kind(saved: object, live: object) -> bool:
    if saved is None or live is None:
        return True
    if isinstance(saved, bool) or isinstance(live, bool):
        return isinstance(saved, bool) and isinstance(live, bool)
    if isinstance(saved, _NUMBERS) and isinstance(live, _NUMBERS):
        return True
    if isinstance(saved, tuple | list) and isinstance(live, tuple | list):
        return len(saved) == len(live) and all(
            _same_kind(s, v) for s, v in zip(saved, live, strict=True)
        )
    return type(saved) is type(live)


def only_live(
    g: int, live: Mapping[str, Any], hyper: Mapping[str, Any], defaults: Collection[str]
) -> list[str]:
    """List the keys of a live group that neither the checkpoint nor the optimizer's defaults have.

    A step may have written them after the checkpoint, and would go on from there; or the user gave
    them. Nothing tells these apart, so that neither keeping nor dropping them is right.
    """
    known = {*hyper, *defaults, *SCHEDULER_KEYS, *STRUCTURAL}
    return [
        f"group {g} has {shown(key)}, the checkpoint has not: where a step wrote it, build the "
        "optimizer anew or delete the key, and restore then; where you gave it, do so afterwards"
        for key in live
        if key not in known
    ]


def tensors_in(value: object) -> Iterator[torch.Tensor]:
    """Yield the tensors among hyperparameters, those inside tuples and lists included."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item)


def keep_tensors(
    groups: Sequence[dict[str, Any]], before: Sequence[Mapping[str, Any]], first: Shared
) -> None:
    """Put new values into the tensors that groups had, which a captured or compiled step reads.

    A tensor that several places shared stays with those that get its first new value; the others
    get their own.

    Args:
        groups: The groups as loaded.
        before: What they held.
        first: The tensors that got a value, in this optimizer or in another one.
    """

    def put(old: Any, new: Any) -> Any:
        if isinstance(old, torch.Tensor) and _fits(old, new):
            value = _tensor(new)
            if id(old) not in first:
                first[id(old)] = (old, value.clone())
                return old.copy_(value)
            same = equal(first[id(old)][1], value)
            return old if same else torch.empty_like(old).copy_(value)
        both = isinstance(old, tuple | list) and isinstance(new, tuple | list)
        if both and type(new) in (tuple, list) and len(old) == len(new):
            return type(new)([put(o, n) for o, n in zip(old, new, strict=True)])
        return new

    with torch.no_grad():
        for group, old in zip(groups, before, strict=True):
            for key in old:
                if (
                    key in group
                    and key not in STRUCTURAL
                    and any(True for _ in tensors_in(old[key]))
                ):
                    group[key] = put(old[key], group[key])


def _tensor(value: Any) -> torch.Tensor:
    # as_tensor() would move a tensor, too, to the device of torch.set_default_device().
    return value if isinstance(value, torch.Tensor) else torch.as_tensor(value, device="cpu")


def _fits(old: torch.Tensor, new: object) -> bool:
    """Say whether a tensor can take a value: of its shape, and no fraction where it has none."""
    if isinstance(new, bool) or not isinstance(new, _NUMBERS):
        return False
    value = _tensor(new)
    if isinstance(new, torch.Tensor) and value.shape != old.shape:
        return False
    return torch.can_cast(value.dtype, old.dtype)


def equal(one: object, other: object) -> bool:
    """Compare hyperparameters: numbers by value, in the coarser dtype of two tensors."""
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        return _equal_numbers(one, other)
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    return bool(one == other) or (one != one and other != other)


def _equal_numbers(one: object, other: object) -> bool:
    if not (isinstance(one, _NUMBERS) and isinstance(other, _NUMBERS)):
        return False
    dtypes = [value.dtype for value in (one, other) if isinstance(value, torch.Tensor)]
    dtype = min(dtypes, key=lambda each: each.itemsize)
    first, second = (_tensor(value).detach().cpu().to(dtype) for value in (one, other))
    if first.shape != second.shape and len(dtypes) == 2:
        return False
    return bool(((first == second) | ((first != first) & (second != second))).all())


def unapplied(
    groups: Sequence[Mapping[str, Any]], planned: Sequence[Mapping[str, Any]], where: str
) -> list[str]:
    """List the hyperparameters that are not what was loaded.

    Args:
        groups: What is there now.
        planned: What was loaded.
        where: What to call the groups.
    """
    return [
        f"group {g}: {key} was loaded as {shown(value)}, {where} has "
        f"{shown(group[key]) if key in group else 'none'}"
        for g, (group, hyper) in enumerate(zip(groups, planned, strict=False))
        for key, value in hyper.items()
        if key not in _EXECUTION and (key not in group or not equal(value, group[key]))
    ]
