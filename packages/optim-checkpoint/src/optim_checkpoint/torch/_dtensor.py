"""DTensors as boxes of a whole tensor, whatever their mesh.

A mesh dimension that shards a tensor dimension cuts its indices into pieces as `torch.chunk` does;
`_StridedShard`, which two-dimensional FSDP2 makes, deals them out in several rounds. What one
process holds along each dimension is thus a list of runs, and its shard the product of them.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from optim_checkpoint._errors import UnsupportedStateError

if dist.is_available():
    from torch.distributed.tensor import DTensor, Replicate
else:
    DTensor: Any = None
    Replicate: Any = None

Run = tuple[int, int]
# Offset in the whole tensor, and where this box lies in the local one.
Piece = tuple[tuple[int, ...], tuple[slice, ...]]


def is_dtensor(value: object) -> bool:
    """Say whether a value is a DTensor."""
    return DTensor is not None and isinstance(value, DTensor)


def local_of(tensor: Any) -> torch.Tensor:
    """Return the memory of this process's shard."""
    with torch.no_grad():
        return tensor.detach().to_local()


def _cut(runs: Sequence[Run], begin: int, end: int) -> list[Run]:
    """Return what lies from `begin` to `end` in the concatenation of runs."""
    result: list[Run] = []
    position = 0
    for start, stop in runs:
        low, high = max(begin, position), min(end, position + stop - start)
        if low < high:
            first = start + low - position
            if result and result[-1][1] == first:
                first = result.pop()[0]
            result.append((first, start + high - position))
        position += stop - start
    return result


def shard_runs(runs: Sequence[Run], parts: int, index: int, rounds: int, path: str) -> list[Run]:
    """Return the runs that part `index` of `parts` keeps.

    Args:
        runs: What there is to share out, as half-open ranges.
        parts: Among how many.
        index: Which one.
        rounds: In how many rounds; more than one only where the length divides evenly.
        path: What to call the tensor in an error.

    Example:
        >>> shard_runs([(0, 5)], 2, 1, 1, "t")
        [(3, 5)]
        >>> shard_runs([(0, 8)], 2, 0, 2, "t")
        [(0, 2), (4, 6)]
    """
    length = sum(stop - start for start, stop in runs)
    if rounds == 1:
        size = -(-length // parts)
        return _cut(runs, index * size, min((index + 1) * size, length))
    size, rest = divmod(length, parts * rounds)
    if rest:
        raise UnsupportedStateError(
            path, f"{length} entries over {parts} processes in {rounds} rounds do not divide evenly"
        )
    result: list[Run] = []
    for turn in range(rounds):
        begin = (turn * parts + index) * size
        for run in _cut(runs, begin, begin + size):
            if result and result[-1][1] == run[0]:
                result[-1] = (result[-1][0], run[1])
            else:
                result.append(run)
    return result


def pieces(
    shape: Sequence[int], mesh: Any, placements: Sequence[Any], path: str
) -> tuple[list[Piece], tuple[int, ...]]:
    """Return the boxes that this process holds, and the shape of its local tensor.

    Raises:
        UnsupportedStateError: For a placement that is neither a shard nor a replica.
    """
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        return [], tuple(0 for _ in shape)
    along: list[list[Run]] = [[(0, size)] for size in shape]
    for dimension, placement in enumerate(placements):
        if placement.is_replicate():
            continue
        rounds = getattr(placement, "split_factor", None if not placement.is_shard() else 1)
        if rounds is None:
            raise UnsupportedStateError(
                path, f"the placement {placement} is neither a shard nor a replica; redistribute it"
            )
        along[placement.dim] = shard_runs(
            along[placement.dim], mesh.size(dimension), coordinate[dimension], int(rounds), path
        )
    local = tuple(sum(stop - start for start, stop in runs) for runs in along)
    if 0 in local:
        return [], local
    placed: list[list[tuple[int, slice]]] = []
    for runs in along:
        position = 0
        placed.append([])
        for start, stop in runs:
            placed[-1].append((start, slice(position, position + stop - start)))
            position += stop - start
    boxes = [
        (tuple(start for start, _ in box), tuple(cut for _, cut in box))
        for box in itertools.product(*placed)
    ]
    return boxes, local


def pieces_of(tensor: Any, path: str) -> list[Piece]:
    """Return the boxes of a DTensor that this process holds.

    Raises:
        UnsupportedStateError: For a layout that this module does not reproduce.
    """
    boxes, local = pieces(tensor.shape, tensor.device_mesh, tensor.placements, path)
    actual = tuple(local_of(tensor).shape)
    if tensor.device_mesh.get_coordinate() is not None and actual != local:
        raise UnsupportedStateError(
            path, f"its shard has shape {list(actual)}, {tensor.placements} make {list(local)}"
        )
    return boxes


def replica_of(tensor: Any) -> int:
    """Return which of the processes that hold the same shard this is, on the mesh of the tensor."""
    number = 0
    coordinate = tensor.device_mesh.get_coordinate() or ()
    for dimension, (place, index) in enumerate(zip(tensor.placements, coordinate, strict=False)):
        if place.is_replicate():
            number = number * tensor.device_mesh.size(dimension) + index
    return number


def sharded_dimensions(tensor: Any) -> set[int]:
    """Return the dimensions of a DTensor that some mesh dimension shards."""
    return {p.dim for p in tensor.placements if not p.is_replicate() and hasattr(p, "dim")}


def dtensor_like(
    local: torch.Tensor, shape: Sequence[int], like: Any, placements: Sequence[Any]
) -> Any:
    """Return a DTensor of a local tensor, on the mesh and the device of another DTensor.

    Args:
        local: This process's shard, on the CPU.
        shape: The shape of the whole.
        like: The other one.
        placements: How `local` is a part of the whole.
    """
    whole = torch.Size(shape)
    here = local_of(like)
    if tuple(whole) == tuple(like.shape) and tuple(placements) == tuple(like.placements):
        # Keeps shards on the CPU that FSDP2 offloads from the device of the mesh.
        result = torch.empty_like(like.detach(), dtype=local.dtype)
        local_of(result).copy_(local)
        return result
    return DTensor.from_local(
        local.to(here.device),
        like.device_mesh,
        placements,
        run_check=False,
        shape=whole,
        stride=torch.empty(whole, device="meta").stride(),
    )


def replicated(like: Any) -> tuple[Any, ...]:
    """Return the placements of a replica on the mesh of a DTensor."""
    return tuple(Replicate() for _ in like.placements)
