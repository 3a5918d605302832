"""Whether a tensor has memory at all: what stands for another one in a trace has none."""

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

from optim_checkpoint._errors import UnsupportedStateError
from optim_checkpoint.torch._dtensor import is_dtensor, local_of

# Devices on which the address 0 is no memory.
_ADDRESSED = ("cpu", "cuda")


def traced(tensor: torch.Tensor) -> str | None:
    """Say why a tensor only stands for another one, while torch traces or transforms code."""
    if isinstance(tensor, FakeTensor):
        return "is a FakeTensor, which has no data: use tensors that were made outside its mode"
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return (
            "belongs to a transformation of torch.func (vmap, grad, jvp, functionalize) and holds "
            "no values outside it: take what that returns"
        )
    if isinstance(tensor, FunctionalTensor):
        return "is a FunctionalTensor, which has no memory: use the tensor that it was made from"
    # PyTorch/XLA has no others.
    if torch._is_functional_tensor(tensor) and tensor.device.type != "xla":
        return "is a functional tensor, which has no memory: use the tensor that it was made from"
    return None


def no_memory(tensor: torch.Tensor) -> str | None:
    """Say why the elements of a tensor that is not on the meta device are nowhere in memory."""
    tensor = local_of(tensor) if is_dtensor(tensor) else tensor
    reason = traced(tensor)
    if reason or tensor.layout != torch.strided or tensor.is_nested or not tensor.numel():
        return reason
    if tensor.device.type not in _ADDRESSED:
        return None
    last = sum(stride * (n - 1) for stride, n in zip(tensor.stride(), tensor.shape, strict=True))
    needed = (tensor.storage_offset() + last + 1) * tensor.element_size()
    storage = tensor.untyped_storage()
    if storage.nbytes() < needed:
        return (
            f"needs {needed} bytes of memory and has {storage.nbytes()}, as resize_(0) of its "
            "storage leaves it: give it back its memory first"
        )
    try:
        address = storage.data_ptr()
    except RuntimeError:
        address = 0
    if address == 0:
        return f"is a {type(tensor).__name__} without memory of its own: use a plain tensor"
    return None


def check_surroundings(what: str) -> None:
    """Refuse to run where torch makes no real tensors.

    Raises:
        UnsupportedStateError: Inside FakeTensorMode, and inside functionalize.
    """
    if (reason := traced(torch.zeros(1, device="cpu"))) is not None:
        raise UnsupportedStateError(
            what, f"a tensor made here {reason.partition(':')[0]}: call it outside"
        )
