"""How the elements of a tensor lie in memory: their order, and whether two of them are one."""

from collections.abc import Sequence

import torch
from torch.nn.parameter import UninitializedParameter

from optim_checkpoint.torch._dtensor import is_dtensor

# Dimensions of more than one entry, from the one of the greatest stride to that of the least.
Order = tuple[int, ...]


def order_of(tensor: torch.Tensor) -> Order:
    """Return in which order a tensor runs through its dimensions.

    Example:
        >>> order_of(torch.empty(2, 3, 4, 5).to(memory_format=torch.channels_last))
        (0, 2, 3, 1)
    """
    if tensor.numel() < 2:
        return ()
    long = [d for d, size in enumerate(tensor.shape) if size > 1]
    return tuple(sorted(long, key=lambda d: -tensor.stride(d)))


def row_major(shape: Sequence[int]) -> Order:
    """Return the order of a tensor in C order.

    Example:
        >>> row_major((2, 1, 3))
        (0, 2)
    """
    return () if 0 in shape else tuple(d for d, size in enumerate(shape) if size > 1)


def state_order(parameter: object, shape: Sequence[int]) -> Order | None:
    """Return the order in which an optimizer allocates a state of this shape; None is C order.

    One of the parameter's shape lies as ``zeros_like(parameter)`` does, which fused steps rely on:
    dense, in the parameter's order. Anything else is in C order. A DTensor has the layout of its
    shards, which `dtensor_like` keeps.
    """
    if (
        not isinstance(parameter, torch.Tensor)
        or isinstance(parameter, UninitializedParameter)
        or is_dtensor(parameter)
        or tuple(parameter.shape) != tuple(shape)
        or parameter.is_contiguous()
    ):
        return None
    return order_of(torch.empty_like(parameter, device="meta"))


def is_order(value: object, shape: Sequence[int]) -> bool:
    """Say whether a value that was read lists the long dimensions of a shape once each."""
    return (
        isinstance(value, list)
        and all(type(dimension) is int for dimension in value)
        and tuple(sorted(value)) == row_major(shape)
    )


def empty_in(order: Order, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Return new dense memory that runs through its dimensions in an order.

    Example:
        >>> empty_in((1, 0), (2, 3), torch.float32).stride()
        (1, 2)
    """
    dimensions = [d for d in range(len(shape)) if d not in order] + list(order)
    memory = torch.empty([shape[d] for d in dimensions], dtype=dtype, device="cpu")
    return memory.permute([dimensions.index(d) for d in range(len(shape))])


def overlaps(tensor: torch.Tensor) -> bool:
    """Say whether two elements of a tensor are one place in memory, as `expand` makes them.

    Example:
        >>> overlaps(torch.zeros(1, 3).expand(4, 3)), overlaps(torch.zeros(4, 6)[:, ::2])
        (True, False)
    """
    if tensor.layout != torch.strided or tensor.is_nested or tensor.numel() < 2:
        return False
    dimensions = sorted((tensor.stride(d), size) for d, size in enumerate(tensor.shape) if size > 1)
    reach = 0
    for stride, size in dimensions:
        if stride <= reach:
            return _counted(dimensions)
        reach += stride * (size - 1)
    return False


def _counted(dimensions: Sequence[tuple[int, int]]) -> bool:
    if dimensions[0][0] == 0:
        return True
    places = torch.zeros(1, dtype=torch.int64, device="cpu")
    for stride, size in dimensions:
        steps = stride * torch.arange(size, device="cpu")
        places = (places[:, None] + steps).reshape(-1)
    return places.unique().numel() < places.numel()
