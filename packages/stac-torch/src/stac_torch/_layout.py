"""How tensors lie in memory: kernels follow addresses, and go through all tensors in one order."""

from collections.abc import Sequence

import torch
from torch import Tensor


def hold_entries(tensors: Sequence[Tensor]) -> bool:
    """Tell whether the memory of tensors holds their entries, so that an address will do.

    That of zeros which torch never wrote down does not, nor of views of the opposite numbers, of
    what a transformation wrapped, of layouts with several parts, of storage that was given back.
    """
    if any(map(Tensor.is_neg, tensors)):
        return False
    try:
        addresses = [*map(Tensor.data_ptr, tensors)]
    except RuntimeError:
        return False
    return 0 not in addresses or not any(t.numel() and not t.data_ptr() for t in tensors)


def are_locked(tensors: Sequence[Tensor]) -> bool:
    """Tell whether torch forbids to write to one of them, made under ``inference_mode``."""
    return not torch.is_inference_mode_enabled() and any(map(Tensor.is_inference, tensors))


def same_layout(one: Tensor, other: Tensor) -> bool:
    """Tell whether two tensors of one shape keep their entries in the same order."""
    return (one.is_contiguous() and other.is_contiguous()) or one.stride() == other.stride()


def laid_out_like(p: Tensor, grad: Tensor) -> Tensor:
    """Return a gradient whose memory holds its entries in the order of ``p``: itself, or a copy."""
    if same_layout(grad, p) and hold_entries((grad,)):
        return grad
    return torch.empty_like(p, dtype=grad.dtype).copy_(grad)


def is_dense(tensor: Tensor) -> bool:
    """Tell whether a tensor's entries fill a piece of memory without gaps, each once."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True
