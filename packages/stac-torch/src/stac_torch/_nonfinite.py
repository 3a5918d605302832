"""What to do about gradients that are not finite: one flag for the whole step."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from stac_torch._local import meshes

Policy = Literal["skip", "raise", "propagate"]
POLICIES: tuple[Policy, ...] = ("skip", "raise", "propagate")


def found_nonfinite(
    grads: Sequence[Tensor], parameters: Sequence[Tensor], group: Any = None
) -> Tensor | None:
    """Return a 0-d boolean tensor: whether an entry of a gradient, on any rank, is not finite.

    One pass over the gradients, without a copy of them and without a synchronisation of its own.

    Args:
        grads: Local, real gradients of this rank.
        parameters: All parameters of the optimizer, equal on all ranks; DTensors among them tell
            over which meshes the flag is reduced.
        group: A process group to reduce over as well, for other sharded wrappers.

    Returns:
        The flag on the device of the first gradient; None where there is nothing to check.
    """
    filled = [g for g in grads if g.numel() > 0]
    reduced = meshes(parameters)
    if not filled and not reduced and group is None:
        return None
    if filled:
        largest = torch.nn.utils.get_total_norm(filled, float("inf"))
        flag = largest.isfinite().logical_not()
    else:
        flag = torch.zeros((), dtype=torch.bool, device=parameters[0].device)
    groups = [mesh.get_group(dim) for mesh in reduced for dim in range(mesh.ndim)]
    groups += [] if group is None else [group]
    if not groups:
        return flag
    count = flag.to(torch.float32)
    for each in groups:
        dist.all_reduce(count, op=dist.ReduceOp.MAX, group=each)
    return count > 0


class SkipCounter:
    """Counts skipped steps: in Python where the flag was read, on the device where it was not."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self._host = 0
        self._in_a_row = 0
        self._device: Tensor | None = None
        self._since_check = 0

    @property
    def total(self) -> int:
        """Steps skipped so far; reading it waits for the device."""
        return self._host + (0 if self._device is None else int(self._device[0].item()))

    def count(self, *, skipped: bool) -> None:
        """Count one step whose flag is known."""
        self._host += skipped
        self._in_a_row = self._in_a_row + 1 if skipped else 0
        if self.limit is not None and self._in_a_row >= self.limit:
            self._raise(self._in_a_row)

    def count_on_device(self, flag: Tensor) -> None:
        """Count one step whose flag stays on the device.

        The limit is looked at once in ``limit`` steps, so that the device is not waited for at
        every one; not at all in a graph capture, nor while compiling.
        """
        if self._device is None or self._device.device != flag.device:
            self._host = self.total
            self._device = torch.zeros(2, dtype=torch.int64, device=flag.device)
        total, in_a_row = self._device.unbind()
        total.add_(flag)
        in_a_row.add_(1).mul_(flag)
        if self.limit is None or torch.compiler.is_compiling() or _capturing(flag.device):
            return
        self._since_check += 1
        if self._since_check >= self.limit:
            self._since_check = 0
            steps = int(in_a_row.item())
            if steps >= self.limit:
                self._raise(steps)

    def _raise(self, steps: int) -> None:
        msg = (
            f"the gradients of {steps} steps in a row were not finite and every one of these steps was "
            "left out: the run is dead. Restart from a checkpoint with a smaller learning rate, or "
            "raise max_consecutive_nonfinite (None for no limit)"
        )
        raise RuntimeError(msg)


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
