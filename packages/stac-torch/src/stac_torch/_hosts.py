"""What wraps an optimizer or its parameters: whose shards these are, and what cannot be stepped."""

import sys
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist

_ZERO = "torch.distributed.optim.zero_redundancy_optimizer"


def distributed() -> bool:
    """Tell whether this process is one of several that may share a step."""
    return dist.is_available() and dist.is_initialized()


def owners_group() -> Any:
    """Return the process group of the ZeroRedundancyOptimizer that is building this optimizer.

    It gives each rank the parameters that the rank owns, as plain tensors: nothing in them, and no
    argument, says that the step is decided by others as well. Only the call does.

    Returns:
        The group; None where no such optimizer is building.
    """
    if not distributed():
        return None
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == _ZERO:
            return getattr(frame.f_locals.get("self"), "process_group", None)
        frame = frame.f_back
    return None


def flag_device(parameters: Iterable[torch.Tensor], group: Any) -> torch.device:
    """Return where a rank without gradients keeps its flag: where the others of a group have it."""
    for parameter in parameters:
        return parameter.device
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is not None and accelerator.type in dist.get_backend_config(group):
        return accelerator
    return torch.device("cpu")


def refuse_flat(parameters: Iterable[Any]) -> None:
    """Raise if a parameter belongs to FSDP1.

    Raises:
        ValueError: One does: flattened layers have no layers left to tell apart, and shards of them
            no shapes that a state could be saved with.
    """
    for parameter in parameters:
        if getattr(parameter, "_fsdp_flattened", False) is True:
            msg = (
                f"a parameter of shape {tuple(parameter.shape)} is part of a flat parameter of "
                "torch.distributed.fsdp.FullyShardedDataParallel (FSDP1), in which layers cannot be "
                "told apart: shard the model with torch.distributed.fsdp.fully_shard (FSDP2), then "
                "build the optimizer"
            )
            raise ValueError(msg)
