"""What to do about gradients that are not finite: one flag for the whole step."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from stac_torch._clipping import REFUSED, check_meshes, joined, measured, process_groups
from stac_torch._forms import takes_look
from stac_torch._fused import all_finite_fused
from stac_torch._hosts import ALONE, Deciders, flag_device
from stac_torch._local import has_values, local_reals

Policy = Literal["skip", "raise", "propagate"]
POLICIES: tuple[Policy, ...] = ("skip", "raise", "propagate")


def found_nonfinite(
    grads: Sequence[Tensor],
    parameters: Sequence[Tensor],
    deciders: Deciders = ALONE,
    *,
    fused: bool = False,
    refused: bool = False,
) -> Tensor | None:
    """Return a 0-d tensor, positive if an entry of a gradient is not finite, on any rank.

    One pass over the gradients, without a copy of them and without a synchronisation of its own.

    Args:
        grads: Local, real gradients of this rank.
        parameters: The parameters of this rank, of which there may be none; DTensors among them
            decide over their meshes.
        deciders: Who decides beside them.
        fused: Whether the compiled kernel may look, which has the same answer.
        refused: Whether this rank cannot take the step at all, which the others have to know.

    Returns:
        A boolean on the device of the first gradient; where several ranks decide, the largest of
        their answers; None where there is nothing to check.
    """
    filled = [g for g in grads if g.numel() > 0]
    groups = process_groups(parameters, deciders)
    if not filled and not groups:
        return None
    if filled:
        flag = _all_finite(filled, fused=fused).logical_not()
    else:
        flag = torch.zeros((), dtype=torch.bool, device=flag_device(parameters, deciders))
    if not groups:
        return flag
    answer = torch.full_like(flag, REFUSED, dtype=torch.float32) if refused else flag.float()
    for each in groups:
        dist.all_reduce(answer, op=dist.ReduceOp.MAX, group=each)
    return answer


def _all_finite(grads: Sequence[Tensor], *, fused: bool) -> Tensor:
    """Tell whether the largest magnitude is finite, on the device of the first gradient."""
    infinity = float("inf")
    on_cpu = all(g.is_cpu for g in grads)
    if fused and on_cpu and takes_look(grads):
        return torch.tensor(all_finite_fused(grads), device="cpu")
    if torch.compiler.is_compiling():
        # What groups tensors by device breaks the graph; a compiler needs no multi-tensor form.
        finite = [torch.linalg.vector_norm(g, infinity).isfinite() for g in grads]
        return torch.stack([each.to(grads[0].device) for each in finite]).all()
    if on_cpu:
        # Reads as fast as memory gives, where a norm takes eighty times that.
        extremes = [extreme for g in joined(grads) for extreme in torch.aminmax(g)]
        return torch.stack([each.to(torch.float64) for each in extremes]).isfinite().all()
    return torch.nn.utils.get_total_norm(grads, infinity).isfinite()


class NonfiniteGuard:
    """Decides, before anything is changed, whether a step is taken, and counts those that are not.

    Counts in Python where the flag is read, on the device where it is not.

    Args:
        policy: What a bad gradient does.
        limit: Raise after so many skipped steps in a row; None for never.
        deciders: Who decides beside the meshes of DTensors; not pickled.
        name: What messages call the optimizer.
    """

    def __init__(
        self, policy: Policy, limit: int | None, deciders: Deciders = ALONE, name: str = "STAC"
    ) -> None:
        self.policy: Policy = policy
        self.name = name
        self.limit = limit
        self.deciders = deciders
        self._host = 0
        self._in_a_row = 0
        self._device: Tensor | None = None
        self._since_check = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "deciders": ALONE}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Pickled by a release that kept the process group alone.
        state.pop("group", None)
        self.__dict__.update({"deciders": ALONE, "name": "STAC", **state})

    def __deepcopy__(self, memo: dict[int, Any]) -> "NonfiniteGuard":
        copied = type(self)(self.policy, self.limit, name=self.name)
        copied.__dict__.update(deepcopy(self.__getstate__(), memo))
        # A copy in the same process decides with the same others.
        copied.deciders = self.deciders
        return copied

    @property
    def skipped(self) -> int:
        """Steps skipped so far; reading it waits for the device."""
        return self._host + (0 if self._device is None else int(self._device[0].item()))

    def skip(
        self,
        param_groups: Sequence[dict[str, Any]],
        supplied: Tensor | None,
        *,
        on_device: bool,
        prepare: Callable[[], None],
        clips: bool = False,
    ) -> tuple[bool | Tensor, Tensor | None]:
        """Tell whether to leave this step out, and the total norm of its gradients.

        Args:
            param_groups: The optimizer's groups.
            supplied: The flag of a gradient scaler, which replaces the check of this optimizer and
                is not counted; positive for bad.
            on_device: Whether the host must not wait for the answer.
            prepare: Raises RuntimeError where the step cannot be taken.
            clips: Whether the norm is needed, which then is the check as well.

        Returns:
            The answer, a 0-d boolean tensor if only the device knows it; and the norm, None unless
            it is needed.

        Raises:
            RuntimeError: A gradient is sparse, or not finite under "raise", or the limit is
                reached; or another rank cannot take the step.
        """
        parameters = [p for group in param_groups for p in group["params"]]
        fused = any(g.get("fused") is not False for g in param_groups)
        decides = supplied is None and self.policy != "propagate"
        if clips:
            check_meshes(parameters)
        try:
            prepare()
            grads = dense_gradients(param_groups, self.name)
        except RuntimeError:
            # The others, if any, wait for this rank's answer.
            if clips:
                measured((), parameters, self.deciders, refused=True)
            elif decides:
                found_nonfinite((), parameters, self.deciders, refused=True)
            raise
        if clips:
            owners = [p for p in parameters if p.grad is not None]
            pairs = list(zip(owners, grads, strict=True))
            found, norm = measured(pairs, parameters, self.deciders)
            if not decides:
                return self._told(found, supplied, on_device=on_device), norm
            return self._decision(found, on_device=on_device), norm
        if decides:
            answer = found_nonfinite(local_reals(grads), parameters, self.deciders, fused=fused)
            return self._decision(answer, on_device=on_device), None
        return self._told(None, supplied, on_device=on_device), None

    def _told(
        self, found: Tensor | None, supplied: Tensor | None, *, on_device: bool
    ) -> bool | Tensor:
        """Return the answer of a gradient scaler; False where nobody is to decide."""
        if found is not None and not on_device and has_values(found):
            _refuse_with_others(found.item())
        if supplied is None:
            return False
        flag = supplied.reshape(()) > 0
        if found is not None and self.policy != "propagate":
            flag = flag | (found.to(flag.device) > 0)
        return flag if on_device else has_values(flag) and bool(flag.item())

    def _decision(self, answer: Tensor | None, *, on_device: bool) -> bool | Tensor:
        """Return the answer of this optimizer, and count it."""
        if answer is None:
            return False
        if on_device and self.policy == "skip":
            flag = answer > 0
            self._count_on_device(flag)
            return flag
        if not has_values(answer):
            return False
        found = answer.item()
        _refuse_with_others(found)
        bad = bool(found)
        if bad and self.policy == "raise":
            msg = (
                "a gradient is not finite; nothing was changed. Look at the loss of this batch, or "
                "use nonfinite='skip' to leave such steps out"
            )
            raise RuntimeError(msg)
        self._host += bad
        self._in_a_row = self._in_a_row + 1 if bad else 0
        self._check_limit(self._in_a_row)
        return bad

    def _count_on_device(self, flag: Tensor) -> None:
        if self._device is None or self._device.device != flag.device:
            self._host = self.skipped
            self._device = torch.zeros(2, dtype=torch.int64, device=flag.device)
        total, in_a_row = self._device.unbind()
        total.add_(flag)
        in_a_row.add_(1).mul_(flag)
        if self.limit is None or torch.compiler.is_compiling() or _capturing(flag.device):
            return
        # Looked at once in `limit` steps: waiting for the device at each one is what this avoids.
        self._since_check += 1
        if self._since_check >= self.limit:
            self._since_check = 0
            self._check_limit(int(in_a_row.item()))

    def _check_limit(self, in_a_row: int) -> None:
        if self.limit is not None and in_a_row >= self.limit:
            msg = (
                f"the gradients of {in_a_row} steps in a row were not finite and all these steps "
                "were left out: the run is dead. Restart from a checkpoint with a smaller learning "
                "rate, or raise max_consecutive_nonfinite (None for no limit)"
            )
            raise RuntimeError(msg)


def dense_gradients(param_groups: Sequence[dict[str, Any]], name: str) -> list[Tensor]:
    """Return all gradients.

    Raises:
        RuntimeError: One is sparse.
    """
    grads: list[Tensor] = []
    for group in param_groups:
        for parameter in group["params"]:
            grad = parameter.grad
            if grad is None:
                continue
            if grad.layout != torch.strided:
                msg = (
                    f"{name} does not support sparse gradients, got one of shape "
                    f"{tuple(grad.shape)}: use sparse=False in its embedding, or give this "
                    "parameter to torch.optim.SparseAdam"
                )
                raise RuntimeError(msg)
            grads.append(grad.resolve_conj())
    return grads


def _refuse_with_others(found: float) -> None:
    if found == REFUSED:
        msg = (
            "another rank cannot take this step, and its own error says why; nothing was changed "
            "here"
        )
        raise RuntimeError(msg)


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
