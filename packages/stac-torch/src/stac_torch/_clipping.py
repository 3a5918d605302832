"""Clipping by the total norm of a step's gradients, which also tells that one is not finite.

With all gradients g, their entries taken together, and a largest norm c,

    n = sqrt(sum |g|^2);     f = min(1, c / (n + 1e-6))

as ``torch.nn.utils.clip_grad_norm_`` has it. f is a factor inside the update: no gradient is
rewritten. n is a sum of squares, so a nan or an infinity anywhere makes it one.
"""

# pyright: reportPrivateImportUsage=false
# The multi-tensor functions have no public names; torch's own optimizers call them so.

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from stac_torch._hosts import Deciders, flag_device
from stac_torch._local import is_dtensor, local_grad, meshes, real

# Below, a call costs more than the entries.
SMALL_ENTRIES = 1 << 12

# What a rank answers that cannot take the step; else 1 for a bad gradient, and 0.
REFUSED = 2


@dataclass
class Clipping:
    """The options of clipping, and the last norm: Dynamo keeps no attribute of an optimizer itself.

    Attributes:
        max_norm: The largest norm, > 0; infinity only measures.
        write: Whether gradients are rewritten, for those who read them after the step.
        norm: The total norm of the last step's gradients, 0-d; not pickled.
    """

    max_norm: float
    write: bool
    norm: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "norm": None}

    def factor(self, norm: Tensor, grad_scale: Tensor | None) -> Tensor:
        """Note the norm of a step's gradients, and return their factor.

        Args:
            norm: As it was measured.
            grad_scale: None, or the factor that a gradient scaler left in the gradients.
        """
        if grad_scale is not None:
            norm = norm / grad_scale.reshape(()).to(norm)
        self.norm = norm
        return torch.clamp(self.max_norm / (norm + 1e-6), max=1.0)


class Measured(NamedTuple):
    """What a look at all gradients found.

    Attributes:
        answer: 0-d: ``REFUSED`` where a rank cannot take the step, else positive where a gradient
            is not finite.
        norm: The total norm, 0-d, equal on all ranks; None where it was not asked for.
    """

    answer: Tensor
    norm: Tensor | None = None


def checked_clipping(max_grad_norm: Any, write_clipped: Any) -> Clipping | None:
    """Return the options, None without clipping.

    Raises:
        ValueError: The norm is not positive, or gradients are to be clipped without one.
        TypeError: A value has the wrong type.
    """
    if not isinstance(write_clipped, bool):
        msg = f"write_clipped must be True or False, got {write_clipped!r}"
        raise TypeError(msg)
    if max_grad_norm is None:
        if write_clipped:
            msg = "write_clipped=True writes gradients clipped to max_grad_norm, got None: give one"
            raise ValueError(msg)
        return None
    if isinstance(max_grad_norm, bool) or not isinstance(max_grad_norm, Real):
        msg = f"max_grad_norm must be a number > 0 or None, got {max_grad_norm!r}"
        raise TypeError(msg)
    if math.isnan(max_grad_norm) or max_grad_norm <= 0:
        msg = f"max_grad_norm must be > 0, or None for no clipping, got {max_grad_norm!r}"
        raise ValueError(msg)
    return Clipping(float(max_grad_norm), write_clipped)


def check_meshes(parameters: Sequence[Tensor]) -> None:
    """Raise unless all DTensors are on one mesh.

    Raises:
        RuntimeError: They are on several.
    """
    found = meshes(parameters)
    if len(found) > 1:
        msg = (
            f"max_grad_norm needs one norm over all parameters, which are DTensors on {len(found)} "
            "device meshes, of which none says how often each entry counts: clip before the step, "
            "or build an optimizer for each mesh"
        )
        raise RuntimeError(msg)


def process_groups(parameters: Sequence[Tensor], deciders: Deciders) -> list[Any]:
    """Return the process groups to decide over, one after the other."""
    groups = [mesh.get_group(dim) for mesh in meshes(parameters) for dim in range(mesh.ndim)]
    return groups if deciders.group is None else [*groups, deciders.group]


def measured(
    pairs: Sequence[tuple[Tensor, Tensor]],
    parameters: Sequence[Tensor],
    deciders: Deciders,
    *,
    refused: bool = False,
) -> Measured:
    """Return the total norm of the gradients of all ranks, without waiting for a device.

    Args:
        pairs: Parameters of this rank and their gradients.
        parameters: All parameters of this rank, of which there may be none; DTensors among them
            share one mesh, and every rank has them in one order.
        deciders: Who holds parameters of their own beside it.
        refused: Whether this rank cannot take the step at all, which the others have to know.
    """
    groups = process_groups(parameters, deciders)
    parts: dict[tuple[int, ...], list[Tensor]] = {}
    for parameter, grad in pairs:
        held = real(local_grad(parameter, grad))
        if held.numel():
            parts.setdefault(_cuts(parameter, len(groups), deciders), []).append(held)
    if not groups:
        filled = parts.get((), [])
        norm = norm_of(filled) if filled else torch.zeros(())
        return Measured(norm.isfinite().logical_not(), norm)

    # How each part is divided among the ranks; alike on all of them, whose vectors are added.
    plain = _cuts(None, len(groups), deciders)
    kinds = sorted({plain, *(_cuts(p, len(groups), deciders) for p in parameters)})
    norms = {kind: norm_of(parts[kind]) for kind in kinds if kind in parts}
    device = flag_device(parameters, deciders)
    for norm in norms.values():
        device = norm.device
        break
    dtype = torch.float64 if torch.float64 in [n.dtype for n in norms.values()] else torch.float32
    zero = torch.zeros((), dtype=torch.float64, device=device)
    squares = [norms[kind].to(zero).square() if kind in norms else zero for kind in kinds]
    bad = torch.stack(squares).sum().isfinite().logical_not()
    vector = torch.stack([*squares, bad.to(zero), zero + refused])
    for dim, group in enumerate(groups):
        before = vector.clone()
        dist.all_reduce(vector, group=group)
        for at, kind in enumerate(kinds):
            if dim not in kind:
                # The ranks of this group hold it alike: it counts once.
                vector[at] = before[at]
    norm = vector[:-2].sum().sqrt().to(dtype)
    unfit = (vector[-2] > 0) | norm.isfinite().logical_not()
    return Measured(torch.where(vector[-1] > 0, REFUSED, unfit.to(zero)), norm)


def _cuts(parameter: Any, groups: int, deciders: Deciders) -> tuple[int, ...]:
    """Return over which of the groups a parameter's entries are divided."""
    if not is_dtensor(parameter):
        return () if deciders.group is None else (groups - 1,)
    return tuple(dim for dim, how in enumerate(parameter.placements) if not how.is_replicate())


def norm_of(grads: Sequence[Tensor]) -> Tensor:
    """Return the norm of all entries, in float32 at least, on the device of the first gradient.

    Args:
        grads: Local and real, with entries.
    """
    device = grads[0].device
    if torch.compiler.is_compiling():
        # What groups tensors by device breaks the graph; a compiler needs no multi-tensor form.
        norms = [torch.linalg.vector_norm(g, dtype=_wide(g.dtype)) for g in grads]
    elif all(g.device.type == "cpu" for g in grads):
        norms = [_host_norm(g) for g in joined(grads)]
    else:
        alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        for g in grads:
            alike.setdefault((g.device, g.dtype), []).append(g)
        norms = [
            norm
            for (_, dtype), members in alike.items()
            for norm in torch._foreach_norm(members, 2, dtype=_wide(dtype))
        ]
    if len(norms) == 1:
        return norms[0]
    return torch.linalg.vector_norm(torch.stack([norm.to(device) for norm in norms]))


def _host_norm(g: Tensor) -> Tensor:
    """Return the norm of a tensor in host memory.

    A scalar product rounds less than ``vector_norm``: of 40 million entries it is off by 1e-3 of
    the norm where ``vector_norm`` is by 3e-3.
    """
    if g.dtype in (torch.float32, torch.float64) and g.is_contiguous():
        flat = g.view(-1)
        return torch.dot(flat, flat).sqrt()
    return torch.linalg.vector_norm(g, dtype=_wide(g.dtype))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype is torch.float64 else torch.float32


def joined(grads: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients, small ones as one of each dtype: a look costs as much for one."""
    small: dict[torch.dtype, list[Tensor]] = {}
    rest: list[Tensor] = []
    for g in grads:
        if g.numel() > SMALL_ENTRIES:
            rest.append(g)
        else:
            small.setdefault(g.dtype, []).append(g.reshape(-1))
    return [*rest, *(torch.cat(members) for members in small.values())]


def write_(
    grads: Sequence[Tensor], factor: Tensor, grad_scale: Tensor | None, skip: Tensor | None
) -> None:
    """Clip gradients in place, unscaled where a scaler left its factor in them.

    Args:
        grads: What this rank holds.
        factor: That of clipping.
        grad_scale: None, or the factor that a gradient scaler left in them.
        skip: None, or a flag: where true they stay as they are.

    Raises:
        ValueError: A gradient is expanded; none was written then.
    """
    if any(0 in g.stride() and g.numel() > 1 for g in grads):
        raise ValueError("write_clipped needs gradients that share no entries; one is expanded")
    if skip is not None:
        factor = torch.where(skip, 1.0, factor)
        grad_scale = None if grad_scale is None else torch.where(skip, 1.0, grad_scale)
    # Two parameters may hold one gradient.
    for g in {id(g): g for g in grads}.values():
        if grad_scale is not None:
            g.div_(grad_scale.to(g.device))
        g.mul_(factor.to(g.device))
