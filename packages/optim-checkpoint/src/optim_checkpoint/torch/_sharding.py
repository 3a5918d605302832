"""Reading stored tensors into DTensors: each process reads the boxes it holds and no more."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from optim_checkpoint._boxes import Region, Shape
from optim_checkpoint._errors import (
    CorruptCheckpointError,
    IncompatibleCheckpointError,
    UnsupportedStateError,
    shown,
)
from optim_checkpoint._header import TensorInfo
from optim_checkpoint._typed import decode
from optim_checkpoint.torch._dtensor import (
    dtensor_like,
    is_dtensor,
    local_of,
    pieces,
    replicated,
    sharded_dimensions,
)
from optim_checkpoint.torch._layout import is_order, state_order
from optim_checkpoint.torch._tensors import BY_NAME, TorchStaging, bytes_in_place


@dataclass(frozen=True)
class LocalShard:
    """This process's part of a stored tensor.

    Attributes:
        local: Its memory; filled by the read.
        shape: The shape of the whole.
        like: The DTensor whose mesh and device it goes to.
        placements: How it is a part of the whole.
    """

    local: torch.Tensor
    shape: Shape
    like: Any
    placements: tuple[Any, ...]

    def dtensor(self) -> Any:
        """Return the DTensor, now that the data is there."""
        return dtensor_like(self.local, self.shape, self.like, self.placements)


def stage_shard(
    staging: TorchStaging, key: str, like: Any, placements: tuple[Any, ...]
) -> LocalShard:
    """Ask for this process's part of a stored tensor.

    Raises:
        IncompatibleCheckpointError: If the live layout cannot be reproduced.
    """
    info = staging.staging.info(key)
    try:
        boxes, shape = pieces(info.shape, like.device_mesh, placements, key)
    except UnsupportedStateError as error:
        raise IncompatibleCheckpointError([str(error)]) from None
    local = torch.empty(shape, dtype=BY_NAME[info.dtype], device="cpu")
    memory = bytes_in_place(local)
    for offset, cut in boxes:
        staging.staging.want(key, Region(offset, memory[cut]))
    return LocalShard(local, info.shape, like, placements)


def slot_placements(
    parameter: Any, info: TensorInfo, *, sharded: bool, any_sharded: bool
) -> tuple[Any, ...] | None:
    """Say how a slot of a sharded parameter is laid out; None for a plain tensor.

    A slot of the parameter's shape is sharded as the parameter. One of another shape is, where it
    was a DTensor when it was saved, or where nothing was (a checkpoint of one process), and where
    it has the parameter's length along every dimension that is sharded: so are the scales of an
    8-bit moment. What was a DTensor and does not fit is replicated.

    Args:
        parameter: The live DTensor.
        info: The stored slot.
        sharded: Whether the slot was a DTensor.
        any_sharded: Whether any slot of the checkpoint was.
    """
    shape = info.shape
    if shape == tuple(parameter.shape) and shape:
        return tuple(parameter.placements)
    fits = all(
        d < len(shape) and shape[d] == parameter.shape[d] for d in sharded_dimensions(parameter)
    )
    if fits and shape and (sharded or not any_sharded):
        return tuple(parameter.placements)
    return replicated(parameter) if sharded else None


def decode_slots(
    typed: object,
    parameter: Any,
    staging: TorchStaging,
    sharded: Mapping[str, Shape],
    orders: Mapping[str, object],
) -> object:
    """Decode the state of one parameter; what belongs in a DTensor comes as `LocalShard`.

    Args:
        typed: The typed value.
        parameter: The live parameter, or None.
        staging: The optimizer part.
        sharded: Which stored tensors were DTensors.
        orders: Which stored tensors do not lie as `state_order` says.
    """

    def leaf(tag: str, content: object) -> object:
        if tag != "tensor":
            return staging.leaf(tag, content)
        info = staging.staging.info(content)
        if is_dtensor(parameter):
            placements = slot_placements(
                parameter, info, sharded=content in sharded, any_sharded=bool(sharded)
            )
            if placements is not None:
                return stage_shard(staging, str(content), parameter, placements)
        order = orders.get(str(content))
        if order is None:
            return staging.tensor(content, state_order(parameter, info.shape))
        if not is_order(order, info.shape):
            raise CorruptCheckpointError(
                staging.staging.file,
                f"{shown(order)} is not an order of its dimensions",
                tensor=str(content),
            )
        # is_order() asked for a list, which pyright cannot follow.
        return staging.tensor(content, tuple(order))  # pyright: ignore[reportArgumentType]

    return decode(typed, staging.staging.file, leaf)


def settle_shards(value: Any) -> Any:
    """Replace every `LocalShard` in plain containers by its DTensor."""
    if isinstance(value, LocalShard):
        return value.dtensor()
    if type(value) is dict:
        return {key: settle_shards(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(settle_shards(item) for item in value)
    return value


def shard_whole(value: torch.Tensor, like: Any) -> Any:
    """Return a whole tensor as a DTensor laid out like another one of its shape."""
    boxes, shape = pieces(value.shape, like.device_mesh, like.placements, "a converted tensor")
    local = torch.empty(shape, dtype=value.dtype, device="cpu")
    for offset, cut in boxes:
        box = tuple(slice(o, o + c.stop - c.start) for o, c in zip(offset, cut, strict=True))
        local[cut] = value[box]
    return dtensor_like(local, value.shape, like, like.placements)


def copy_shard(shard: LocalShard, live: Any) -> None:
    """Copy a shard into the live DTensor it was staged for."""
    local_of(live).copy_(shard.local)
