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
from optim_checkpoint._header import BITS, TensorInfo, element_count
from optim_checkpoint._json import as_array, as_object
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
        live: The live DTensor of which `local` is the memory, if it is.
    """

    local: torch.Tensor
    shape: Shape
    like: Any
    placements: tuple[Any, ...]
    live: Any = None

    def dtensor(self) -> Any:
        """Return the DTensor, now that the data is there."""
        if self.live is not None:
            return self.live
        return dtensor_like(self.local, self.shape, self.like, self.placements)


def stage_shard(
    staging: TorchStaging, key: str, like: Any, placements: tuple[Any, ...], live: Any = None
) -> LocalShard:
    """Ask for this process's part of a stored tensor, in the memory of `live` where that can be.

    Raises:
        IncompatibleCheckpointError: If the live layout cannot be reproduced.
    """
    info = staging.staging.info(key)
    try:
        boxes, shape = pieces(info.shape, like.device_mesh, placements, key)
    except UnsupportedStateError as error:
        raise IncompatibleCheckpointError([str(error)]) from None
    here = None if staging.direct is None or not is_dtensor(live) else local_of(live)
    part = TensorInfo(info.dtype, shape, 0, element_count(shape) * BITS[info.dtype] // 8)
    if (
        here is None
        or tuple(live.placements) != placements
        or staging.direct is None
        or not staging.direct.take(here, part)
    ):
        here = live = None
    local = here
    if local is None:
        local = torch.empty(shape, dtype=BY_NAME[info.dtype], device="cpu")
    memory = bytes_in_place(local)
    for offset, cut in boxes:
        staging.staging.want(key, Region(offset, memory[cut]))
    return LocalShard(local, info.shape, like, placements, live)


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
    state: Mapping[Any, Any],
) -> object:
    """Decode the state of one parameter; what belongs in a DTensor comes as `LocalShard`.

    Args:
        typed: The typed value.
        parameter: The live parameter, or None.
        staging: The optimizer part.
        sharded: Which stored tensors were DTensors.
        orders: Which stored tensors do not lie as `state_order` says.
        state: What the live optimizer has for the parameter.
    """
    live = _by_key(typed, state) if staging.direct is not None else {}

    def leaf(tag: str, content: object) -> object:
        if tag != "tensor":
            return staging.leaf(tag, content)
        info = staging.staging.info(content)
        if is_dtensor(parameter):
            placements = slot_placements(
                parameter, info, sharded=content in sharded, any_sharded=bool(sharded)
            )
            if placements is not None:
                here = live.get(str(content))
                return stage_shard(staging, str(content), parameter, placements, here)
        order = orders.get(str(content))
        if order is None:
            expected = state_order(parameter, info.shape)
            if expected is None:
                staging.into(str(content), live.get(str(content)))
            return staging.tensor(content, expected)
        if not is_order(order, info.shape):
            raise CorruptCheckpointError(
                staging.staging.file,
                f"{shown(order)} is not an order of its dimensions",
                tensor=str(content),
            )
        # is_order() asked for a list, which pyright cannot follow.
        return staging.tensor(content, tuple(order))  # pyright: ignore[reportArgumentType]

    return decode(typed, staging.staging.file, leaf)


def _by_key(typed: object, state: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the live tensors among a parameter's slots by the keys of what is stored for them."""
    found: dict[str, Any] = {}
    for pair in as_array((as_object(typed) or {}).get("dict")) or []:
        both = [as_object(item) or {} for item in as_array(pair) or []]
        name, key = (both[0].get("str"), both[1].get("tensor")) if len(both) == 2 else (None, None)
        if isinstance(name, str) and isinstance(key, str):
            found[key] = state.get(name)
    return found


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
    """Copy a shard into the live DTensor it was staged for, unless it was read into it."""
    if shard.live is not live:
        local_of(live).copy_(shard.local)
