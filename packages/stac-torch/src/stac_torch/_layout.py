"""How tensors lie in memory: kernels follow addresses, and go through all tensors in one order."""

import torch
from torch import Tensor


def has_no_memory(tensor: Tensor) -> bool:
    """Tell whether a tensor is zeros that torch never wrote down, and has no address."""
    return tensor._is_zerotensor()


def same_layout(one: Tensor, other: Tensor) -> bool:
    """Tell whether two tensors of one shape keep their entries in the same order."""
    return (one.is_contiguous() and other.is_contiguous()) or one.stride() == other.stride()


def laid_out_like(p: Tensor, grad: Tensor) -> Tensor:
    """Return a gradient whose memory holds its entries in the order of ``p``'s: itself, or a copy.

    The gradient of an imaginary part may be a view of the opposite numbers.
    """
    if same_layout(grad, p) and not grad.is_neg() and not has_no_memory(grad):
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
