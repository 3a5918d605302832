"""Giving live tensors the memory that was read, instead of copying into their own."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from optim_checkpoint.torch._dtensor import is_dtensor
from optim_checkpoint.torch._tensors import is_lazy

Undo = Callable[[Callable[[], None]], object]
# What has no class of its own that a new tensor would have to get.
_KINDS = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)


def assign_differences(memory: Mapping[str, torch.Tensor], own: Callable[[str], bool]) -> list[str]:
    """List the tensors that cannot be given other memory.

    Args:
        memory: The parameters and buffers that are to get it, by name.
        own: Says whether an entry is not one that its module loads by code of its own.
    """
    differences: list[str] = []
    for name, tensor in memory.items():
        if is_dtensor(tensor):
            differences.append(
                f"model entry {name} is a DTensor, which cannot be assigned: give the model memory "
                "with to_empty() and restore without assign"
            )
        elif is_lazy(tensor) or type(tensor) not in _KINDS:
            differences.append(
                f"model entry {name} is a {type(tensor).__name__}, which cannot be assigned: "
                "restore without assign"
            )
        elif tensor.is_meta and not own(name):
            differences.append(
                f"model entry {name} is on the meta device and its module loads it by code of its "
                "own: give it memory first"
            )
    return differences


def assign(memory: Mapping[str, torch.Tensor], values: Mapping[str, Any], undo: Undo) -> None:
    """Give each tensor the memory of the value of its name; every tensor stays the object it is.

    Args:
        memory: Parameters and buffers by name; what is tied is one object.
        values: The values, on the CPU and in the dtype that they are to have.
        undo: Receives what takes it back.
    """
    done: set[int] = set()
    given: set[int] = set()
    for name, tensor in memory.items():
        if name not in values or id(tensor) in done:
            continue
        done.add(id(tensor))
        value = values[name] if tensor.is_meta else values[name].to(tensor.device)
        # What the checkpoint has once may be two tensors here.
        if value.untyped_storage()._cdata in given:
            value = value.clone()
        given.add(value.untyped_storage()._cdata)
        undo(_exchange(tensor, value))


def _exchange(tensor: torch.Tensor, value: torch.Tensor) -> Callable[[], None]:
    if not tensor.is_meta:
        old = tensor.data
        tensor.data = value

        def put_back() -> None:
            tensor.data = old

        return put_back
    # `data` cannot go from one kind of device to another.
    other: Any = value
    if isinstance(tensor, torch.nn.Parameter):
        other = torch.nn.Parameter(value, tensor.requires_grad)
    vars(other).update(vars(tensor))
    torch.utils.swap_tensors(tensor, other)
    return lambda: torch.utils.swap_tensors(tensor, other)
