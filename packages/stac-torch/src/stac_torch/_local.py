"""Local shards: every rule here is elementwise, so each rank works on what it holds.

A DTensor dispatches each operation through its sharding rules, which costs more than the operation;
an elementwise optimizer needs none of it.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import Parameter

DTensor: Any = None
Shard: Any = None
if dist.is_available():
    from torch.distributed import tensor as _tensor

    DTensor, Shard = _tensor.DTensor, _tensor.Shard


_PLAIN = (Tensor, Parameter)


def is_dtensor(tensor: Any) -> bool:
    """Tell whether a tensor is a DTensor."""
    return DTensor is not None and isinstance(tensor, DTensor)


def local(tensor: Any) -> Tensor:
    """Return the part of a tensor that this rank holds; the tensor itself if it is no DTensor."""
    return tensor.to_local() if is_dtensor(tensor) else tensor


def local_reals(tensors: list[Tensor]) -> list[Tensor]:
    """Return what this rank holds of each tensor, complex ones as their two parts."""
    # Looked at together first: with thousands of small parameters a step is bound by such looks.
    if all(type(t) in _PLAIN and not t.is_complex() for t in tensors):
        return tensors
    return [real(local(t)) for t in tensors]


def local_grad(parameter: Any, grad: Any) -> Tensor:
    """Return the part of a gradient that belongs to this rank's part of the parameter."""
    if is_dtensor(parameter) and is_dtensor(grad) and grad.placements != parameter.placements:
        grad = grad.redistribute(placements=parameter.placements)
    # Backward passes leave conjugates unresolved, which have no view as reals.
    return local(grad).resolve_conj()


def real(tensor: Tensor) -> Tensor:
    """Return a tensor with real and imaginary part as two entries; a real one as it is."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def meshes(parameters: Iterable[Any]) -> list[Any]:
    """Return the device meshes of the DTensors among ``parameters``, each once."""
    found: dict[Any, None] = {}
    for parameter in parameters:
        if is_dtensor(parameter):
            found[parameter.device_mesh] = None
    return list(found)


def shard_groups(parameter: Any) -> tuple[Any, ...]:
    """Return the process groups over which a parameter is cut into parts; none if it is whole."""
    if not is_dtensor(parameter):
        return ()
    mesh = parameter.device_mesh
    placements = enumerate(parameter.placements)
    return tuple(mesh.get_group(dim) for dim, how in placements if not how.is_replicate())


def first_entry(parameter: Any) -> int:
    """Return the place in the whole parameter, in C order, of the first entry of this rank."""
    if not is_dtensor(parameter) or local(parameter).numel() == 0:
        return 0
    (chunk,) = parameter.__create_chunk_list__()
    place = 0
    for offset, length in zip(chunk.offsets, parameter.shape, strict=True):
        place = place * length + offset
    return place


def zero_rows(parameter: Any, columns: int, dtype: torch.dtype) -> Tensor:
    """Return zeros with the rows of a parameter, sharded along dimension 0 as it is.

    Raises:
        ValueError: The parameter is sharded along another dimension, which would cut a row.
    """
    here = local(parameter)
    if not is_dtensor(parameter):
        return torch.zeros((parameter.shape[0], columns), dtype=dtype, device=here.device)
    placements = parameter.placements
    if any(isinstance(p, Shard) and p.dim != 0 for p in placements):
        msg = (
            "moments in 'int8' and 'int4' need parameters sharded along dimension 0, got "
            f"{placements}: use 'bfloat16' for this one"
        )
        raise ValueError(msg)
    shape = torch.Size((parameter.shape[0], columns))
    return DTensor.from_local(
        torch.zeros((here.shape[0], columns), dtype=dtype, device=here.device),
        parameter.device_mesh,
        placements,
        run_check=False,
        shape=shape,
        stride=(columns, 1),
    )


def has_values(tensor: Tensor) -> bool:
    """Say whether a tensor holds numbers: not on the meta device, nor where memory is estimated."""
    return not (tensor.is_meta or isinstance(tensor, FakeTensor))
