"""The sign update on tensors in place: the readable loop, and its multi-tensor form.

Per entry, with gradient g, moment m and parameter p (equations (1) and (2) of ``stam_core``):

    m  = sm*m + (1-sm)*g
    p <- p*(1 - lr*wd) - lr*sign(m)

m is computed in float32 at least, its sign is taken there, and it is rounded to its storage dtype
once. p is rounded once too where it is stored in 16 bits.
"""

# pyright: reportPrivateImportUsage=false
# The multi-tensor functions have no public names; torch's own optimizers call them so.

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stac_torch._codes import decode, encode
from stac_torch._dtypes import arithmetic_dtype
from stac_torch._local import real
from stac_torch._records import Slot, chunks
from stac_torch._report import Tally
from stac_torch._rounding import Noise, round_stochastically_


@dataclass(frozen=True)
class SignOptions:
    """What a step needs beside tensors.

    Attributes:
        lr: Step size of the section, a number or a 0-d tensor.
        weight_decay: Decoupled decay, >= 0.
        momentum: sm, in [0, 1).
        maximize: Ascend.
        propagate_nan: Whether gradients that are not finite may arrive: then sign(nan) must be nan,
            which ``torch.sign`` makes 0.
        skip: None, or a 0-d boolean tensor: where true the step leaves everything as it is.
        grad_scale: None, or the 0-d factor that a gradient scaler left in the gradients.
        clip: None, or the 0-d factor of clipping.
        tally: None, or where to count what the step does.
    """

    lr: float | Tensor
    weight_decay: float
    momentum: float
    maximize: bool
    propagate_nan: bool = False
    skip: Tensor | None = None
    grad_scale: Tensor | None = None
    clip: Tensor | None = None
    tally: Tally | None = None

    @property
    def decay(self) -> float | Tensor:
        """The factor of the parameter: 1 without weight decay, whatever the rate is."""
        return 1 - self.lr * self.weight_decay if self.weight_decay != 0 else 1.0


def sign_step_(slots: Sequence[Slot], options: SignOptions) -> None:
    """Take one step, tensor by tensor."""
    for slot in slots:
        for piece in slot.pieces():
            _sign_update_(piece, options)


def _sign_update_(slot: Slot, options: SignOptions) -> None:
    """Take one step on one real tensor, in place; without ``exp_avg`` it has no momentum."""
    param, grad = slot.param, slot.grad
    exp_avg, scale = slot.state.get("exp_avg"), slot.state.get("exp_avg_scale")
    dtype = arithmetic_dtype(param.dtype)
    m = grad.to(dtype)
    if options.grad_scale is not None:
        m = m / options.grad_scale
    if options.clip is not None:
        m = m * options.clip.to(m)
    if options.maximize:
        m = -m
    if exp_avg is not None:
        old = load_moment(exp_avg, scale, dtype, param.shape)
        in_place = old is exp_avg and options.skip is None
        decayed = old.mul_(options.momentum) if in_place else old * options.momentum
        # Not `alpha=`: some devices would fuse it, and have other bits than the rest.
        m = decayed.add_(m * (1 - options.momentum))
        if not in_place:
            kept = m if options.skip is None else torch.where(options.skip, old, m)
            store_moment_(exp_avg, scale, kept, noise=slot.noise, skip=options.skip)

    if options.propagate_nan:
        direction = (m * _huge(dtype)).mul_(_huge(dtype)).clamp_(-1, 1)
    else:
        direction = m.sign()
    if options.skip is not None:
        direction = torch.where(options.skip, 0.0, direction)
    update = direction * options.lr
    decay = options.decay
    if options.skip is not None:
        decay = torch.where(options.skip, 1.0, decay)

    before = None if options.tally is None else param.clone()
    p = param if param.dtype is dtype else param.to(dtype)
    if options.weight_decay != 0:
        p.mul_(decay)
    # As torch's optimizers do: weights in codes may know no other operation. It rounds alike.
    p.add_(update, alpha=-1)
    if p is not param:
        store_parameter_(param, p, slot.noise)
    if options.tally is not None and before is not None:
        options.tally.count(before, param, direction, -grad if options.maximize else grad)


def _huge(dtype: torch.dtype) -> float:
    """Return a power of 2 whose square makes the smallest number that is not 0 larger than 1.

    Multiplied by it twice and clamped, a number becomes its sign and nan stays nan, in a quarter of
    the time that looking for nan beside ``torch.sign`` takes on the CPU.
    """
    return 2.0**1023 if dtype is torch.float64 else 2.0**127


def load_moment(
    exp_avg: Tensor, scale: Tensor | None, dtype: torch.dtype, shape: torch.Size
) -> Tensor:
    """Return a stored moment in the arithmetic dtype; the tensor itself where it has it."""
    return exp_avg.to(dtype) if scale is None else decode(exp_avg, scale, shape).to(dtype)


def store_moment_(
    exp_avg: Tensor,
    scale: Tensor | None,
    value: Tensor,
    *,
    noise: Noise | None = None,
    skip: Tensor | None = None,
) -> None:
    """Round a moment to its storage, to the largest finite value where it is too large for it.

    Args:
        exp_avg: The storage.
        scale: The scales of a code.
        value: The moment; under ``skip`` the one that was there.
        noise: Where a code that is rounded stochastically draws its noise.
        skip: None, or a 0-d boolean tensor: where true a code stays as it is.
    """
    if scale is not None:
        for stored, new in zip((exp_avg, scale), encode(value, exp_avg, noise), strict=True):
            # What is decoded and encoded is not always itself.
            stored.copy_(new if skip is None else torch.where(skip, stored, new))
        return
    largest = torch.finfo(exp_avg.dtype).max
    if largest < torch.finfo(value.dtype).max:
        exp_avg, value = real(exp_avg), real(value.resolve_conj()).clamp(-largest, largest)
    exp_avg.copy_(value)


def store_parameter_(param: Tensor, value: Tensor, noise: Noise | None) -> None:
    """Round a parameter to its storage, to nearest or, given noise, stochastically."""
    if noise is None or not noise.parameter:
        param.copy_(value)
    else:
        round_stochastically_(param, value, noise)


def can_foreach(slots: Sequence[Slot]) -> bool:
    """Tell whether the multi-tensor form covers these tensors: floating state, nearest rounding."""
    return all("exp_avg_scale" not in slot.state and slot.noise is None for slot in slots)


def sign_foreach_(slots: Sequence[Slot], options: SignOptions) -> None:
    """Take one step with one kernel launch per operation and chunk, to spare launches.

    The same values as :func:`sign_step_`, on tensors that share a device.
    """
    for chunk in chunks(slots):
        by_dtype: dict[tuple[torch.dtype | None, ...], list[Slot]] = {}
        for slot in chunk:
            exp_avg = slot.state.get("exp_avg")
            key = slot.param.dtype, None if exp_avg is None else exp_avg.dtype
            by_dtype.setdefault(key, []).append(slot)
        for alike in by_dtype.values():
            _foreach_chunk_(alike, options)


def _foreach_chunk_(slots: Sequence[Slot], options: SignOptions) -> None:
    dtype = arithmetic_dtype(slots[0].param.dtype)
    m: Sequence[Tensor] = [slot.grad.to(dtype) for slot in slots]
    if options.grad_scale is not None:
        m = torch._foreach_div(m, options.grad_scale)
    if options.clip is not None:
        m = torch._foreach_mul(m, options.clip.to(m[0]))
    if options.maximize:
        m = torch._foreach_neg(m)
    if "exp_avg" in slots[0].state:
        exp_avgs = [slot.state["exp_avg"] for slot in slots]
        old = [e.to(dtype) for e in exp_avgs]
        in_place = old[0] is exp_avgs[0] and options.skip is None
        if in_place:
            torch._foreach_mul_(old, options.momentum)
            decayed: Sequence[Tensor] = old
        else:
            decayed = torch._foreach_mul(old, options.momentum)
        torch._foreach_add_(decayed, torch._foreach_mul(m, 1 - options.momentum))
        m = decayed
        if not in_place:
            for e, before, after in zip(exp_avgs, old, m, strict=True):
                kept = after if options.skip is None else torch.where(options.skip, before, after)
                store_moment_(e, None, kept)

    if options.propagate_nan:
        update = list(torch._foreach_mul(m, _huge(dtype)))
        torch._foreach_mul_(update, _huge(dtype))
        torch._foreach_clamp_max_(update, 1.0)
        torch._foreach_clamp_min_(update, -1.0)
    else:
        update = list(torch._foreach_sign(m))
    torch._foreach_mul_(update, options.lr)
    decay = options.decay
    if options.skip is not None:
        update = [torch.where(options.skip, 0.0, u) for u in update]
        decay = torch.where(options.skip, 1.0, decay)

    params = [slot.param for slot in slots]
    p = [param.to(dtype) for param in params]
    if options.weight_decay != 0:
        torch._foreach_mul_(p, decay)
    torch._foreach_sub_(p, update)
    for param, value in zip(params, p, strict=True):
        if value is not param:
            param.copy_(value)
