"""What an optimizer held before a restore, to be put back, and what it holds after one."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from optim_checkpoint._errors import shown
from optim_checkpoint.torch._hyper import STRUCTURAL, equal
from optim_checkpoint.torch._own_load import same

_JUDGED = (bool, int, float, complex, str, torch.Tensor)


def family_of(optimizer: Any) -> Iterator[Any]:
    """Yield an optimizer and those that it holds, as wrappers do."""
    seen: set[int] = set()
    waiting = [optimizer]
    while waiting:
        item = waiting.pop(0)
        if isinstance(item, dict | list | tuple):
            waiting += item.values() if isinstance(item, dict) else item
        elif id(item) not in seen and isinstance(getattr(item, "param_groups", None), list):
            seen.add(id(item))
            yield item
            own = {"param_groups", "state", "defaults"}
            waiting += [value for key, value in vars(item).items() if key not in own]


def loads_itself(optimizer: Any) -> bool:
    """Say whether loading runs code that is not torch's: a method of its own, or a hook."""
    load = getattr(optimizer, "load_state_dict", None)
    hooks = ("_optimizer_load_state_dict_pre_hooks", "_optimizer_load_state_dict_post_hooks")
    return not str(getattr(load, "__module__", "")).startswith("torch.") or any(
        getattr(optimizer, name, None) for name in hooks
    )


def snapshot(optimizer: Any) -> Callable[[], None]:
    """Return what puts an optimizer back.

    The load of torch makes new state and leaves the old alone, which is kept as it is. Code of
    another may write into it: then each tensor is copied, one more copy of the state on its device
    until the restore ends.
    """
    fields, groups, state = dict(vars(optimizer)), optimizer.param_groups, optimizer.state
    contents = [(group, dict(group)) for group in groups]
    slots = dict(state)
    hyper = [{k: v for k, v in group.items() if k not in STRUCTURAL} for group in groups]
    own = {"param_groups", "state", "defaults"}
    kept = [value for name, value in fields.items() if name not in own]
    held: list[Any] = [*slots.values()]
    tensors = [*_tensors(hyper)]
    if loads_itself(optimizer):
        tensors += [*_tensors(held), *_tensors(kept)]
        held += [value for value in kept if not _is_optimizer(value)]
    inside = [
        (value, dict(value) if isinstance(value, dict) else list(value))
        for value in _containers(held)
    ]
    # What is in two places is one tensor.
    values = [(each, each.detach().clone()) for each in {id(t): t for t in tensors}.values()]

    def take_back() -> None:
        vars(optimizer).clear()
        vars(optimizer).update(fields)
        groups[:] = [group for group, _ in contents]
        for own, content in (*contents, *inside, (state, slots)):
            own.clear()
            own.extend(content) if isinstance(own, list) else own.update(content)
        with torch.no_grad():
            for tensor, value in values:
                tensor.copy_(value)

    return take_back


def _is_optimizer(value: Any) -> bool:
    return isinstance(getattr(value, "param_groups", None), list)


def _containers(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        yield value
    if isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _containers(item)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in containers that are no parameters, which are the model's."""
    if isinstance(value, torch.Tensor):
        if not isinstance(value, torch.nn.Parameter):
            yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def lost_state(
    dumped: Mapping[str, Any],
    names: Sequence[Sequence[str]],
    given: Mapping[str, Any],
    *,
    bitwise: bool,
) -> list[str]:
    """List the state of parameters that was loaded and is not there.

    Args:
        dumped: The state dict after the load.
        names: The names of the parameters, group by group.
        given: What was loaded, by name.
        bitwise: Compare the bits too of tensors that are not the given ones; else dtypes and
            shapes, which asks for no data.
    """
    numbers = {
        name: number
        for group, listed in zip(dumped["param_groups"], names, strict=False)
        for number, name in zip(group["params"], listed, strict=False)
    }
    notes: list[str] = []
    for name, slots in given.items():
        now = dumped["state"].get(numbers.get(name))
        where = f"the state of {name} was loaded, state_dict() has"
        if isinstance(slots, dict) and slots and not isinstance(now, dict):
            notes.append(f"{where} none")
        elif isinstance(slots, dict) and isinstance(now, dict):
            lost = [key for key in slots if key not in now]
            other = [k for k in slots if k in now and not _agrees(slots[k], now[k], bitwise)]
            notes += [f"{where} no {shown(lost)}"] * bool(lost)
            notes += [f"{where} another {shown(other)}"] * bool(other)
        elif not isinstance(slots, dict) and not _agrees(slots, now, bitwise):
            notes.append(f"{where} {shown(now)}")
    return notes


def _agrees(given: Any, now: Any, bitwise: bool) -> bool:
    if given is now:
        return True
    if isinstance(given, torch.Tensor) and isinstance(now, torch.Tensor):
        alike = (given.dtype, given.shape) == (now.dtype, now.shape)
        return alike and (not bitwise or same(given, now))
    if isinstance(given, dict) and isinstance(now, dict):
        return all(key in now and _agrees(given[key], now[key], bitwise) for key in given)
    if isinstance(given, list | tuple) and isinstance(now, list | tuple):
        pairs = zip(given, now, strict=False)
        return len(given) == len(now) and all(_agrees(g, n, bitwise) for g, n in pairs)
    if isinstance(given, _JUDGED) and isinstance(now, _JUDGED):
        return equal(given, now)
    # What it cannot judge it lets be, but nothing is not something.
    return (given is None) == (now is None)
