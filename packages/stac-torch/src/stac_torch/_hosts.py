"""What wraps an optimizer or its parameters: whose shards these are, and what cannot be stepped."""

import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

_ZERO = "torch.distributed.optim.zero_redundancy_optimizer"


def distributed() -> bool:
    """Tell whether this process is one of several that may share a step."""
    return dist.is_available() and dist.is_initialized()


class Deciders(NamedTuple):
    """Who decides about a step together, beside the meshes of DTensors.

    Attributes:
        group: A process group; None for this rank alone.
        device: Where its ranks hold their gradients, for one that has none; None if unknown.
    """

    group: Any = None
    device: torch.device | None = None


ALONE = Deciders()


def owners() -> Deciders:
    """Return the ranks of the ZeroRedundancyOptimizer that is building this optimizer, if one is.

    It gives each rank the parameters that the rank owns, as plain tensors: nothing in them, and no
    argument, says that the step is decided by others as well. Only the call does.
    """
    frame = sys._getframe(1) if distributed() else None
    while frame is not None:
        if frame.f_globals.get("__name__") == _ZERO:
            host: Any = frame.f_locals.get("self")
            if hasattr(host, "process_group"):
                device = next((p.device for g in host.param_groups for p in g["params"]), None)
                return Deciders(host.process_group, device)
        frame = frame.f_back
    return ALONE


def flag_device(parameters: Iterable[torch.Tensor], deciders: Deciders) -> torch.device:
    """Return where a rank without gradients keeps its flag: where the others keep theirs."""
    for parameter in parameters:
        return parameter.device
    if deciders.device is not None:
        return deciders.device
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is not None and accelerator.type in dist.get_backend_config(deciders.group):
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
                "torch.distributed.fsdp.FullyShardedDataParallel (FSDP1), in which layers cannot "
                "be told apart: shard the model with torch.distributed.fsdp.fully_shard "
                "(FSDP2), then build the optimizer"
            )
            raise ValueError(msg)
