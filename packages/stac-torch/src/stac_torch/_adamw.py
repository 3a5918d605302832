"""The AdamW section: torch's own AdamW, called on this section's tensors.

Nothing is reimplemented: ``last_n_layers`` of all layers is ``torch.optim.AdamW`` bit for bit, with
its loop, foreach and capturable forms. This module adds what torch's function lacks: moments in
another dtype than the parameter's, a skip flag on the device, and stochastic rounding. Moments in
codes take the rule of ``stam_core``, whose sums have the same bits everywhere.

On the CPU the loop takes a large tensor in pieces that stay in the cache, where torch's own goes
through memory some fifteen times: the same operations on the same entries.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from stac_torch._adamw_coded import coded_step_
from stac_torch._dtypes import arithmetic_dtype
from stac_torch._layout import laid_out_like
from stac_torch._records import CPU_CHUNK_ENTRIES, PLAIN, Slot, chunks
from stac_torch._sign import store_moment_, store_parameter_


def adamw_step_(
    slots: Sequence[Slot],
    *,
    skip: Tensor | None,
    grad_scale: Tensor | None,
    clip: Tensor | None = None,
    **options: Any,
) -> None:
    """Take one step of the section in place.

    Args:
        slots: The tensors; local, possibly complex.
        skip: None, or a 0-d boolean tensor: where true the step leaves everything as it is.
        grad_scale: None, or the 0-d factor that a gradient scaler left in the gradients.
        clip: None, or the 0-d factor of clipping.
        options: What :func:`torch.optim.adamw.adamw` takes beside tensors.
    """
    own: list[Slot] = []
    for slot in slots:
        if "exp_avg_scale" in slot.state:
            coded_step_(slot, skip=skip, grad_scale=grad_scale, clip=clip, **options)
        elif is_torchs(slot):
            own.append(slot)
        else:
            given = {"skip": skip, "grad_scale": grad_scale, "clip": clip}
            _widened_step_(slot.as_reals(), **given, **options)
    if own:
        _torch_step_(own, skip=skip, grad_scale=grad_scale, clip=clip, **options)


def is_torchs(slot: Slot) -> bool:
    """Tell whether torch's function takes a tensor as it is."""
    plain = "exp_avg_scale" not in slot.state and slot.noise is None
    return plain and slot.state["exp_avg"].dtype is slot.param.dtype


def _torch_step_(
    slots: Sequence[Slot],
    *,
    skip: Tensor | None,
    grad_scale: Tensor | None,
    clip: Tensor | None,
    fused: bool | None,
    **options: Any,
) -> None:
    given = {"skip": skip, "grad_scale": grad_scale, "clip": clip, **options}
    if fused:
        _fused_step_(slots, **given)
        return
    # In the order of the parameters, which may share memory.
    whole: list[Slot] = []
    for slot in slots:
        if options["foreach"] or not _is_cut(slot):
            whole.append(slot)
            continue
        _plain_step_(whole, **given)
        whole = []
        step = slot.state["step"]
        before = step.clone()
        for piece in _flat(slot).pieces():
            # Each piece takes the same step.
            step.copy_(before)
            _plain_step_([piece], **given)
    _plain_step_(whole, **given)


def _is_cut(slot: Slot) -> bool:
    """Tell whether the loop takes a tensor in pieces."""
    param, grad, state, _ = slot
    if torch.compiler.is_compiling() or not param.is_cpu or param.numel() <= CPU_CHUNK_ENTRIES:
        return False
    tensors = [param, grad, *(value for value in state.values() if value.ndim)]
    return all(type(t) in PLAIN and t.shape == param.shape and t.is_contiguous() for t in tensors)


def _fused_step_(
    slots: Sequence[Slot],
    *,
    skip: Tensor | None,
    grad_scale: Tensor | None,
    clip: Tensor | None,
    **options: Any,
) -> None:
    # Torch's kernel skips by itself, and like it leaves unscaled gradients behind.
    found_inf = None if skip is None else skip.to(torch.float32)
    # On the CPU it walks all tensors as if they had one order of memory.
    grads = [laid_out_like(slot.param, slot.grad) for slot in slots]
    kernel = {"fused": True, "found_inf": found_inf, **options}
    if clip is None:
        _call(slots, grads, grad_scale=grad_scale, **kernel)
        return
    # In pieces, so that clipped gradients are copies in a cache.
    laid = [slot._replace(grad=g) for slot, g in zip(slots, grads, strict=True)]
    for part in _parts(laid):
        counted = [s._replace(state={**s.state, "step": s.state["step"].clone()}) for s in part]
        _call(counted, [_clipped(s.grad, clip, grad_scale) for s in part], **kernel)
    for slot in slots:
        step = slot.state["step"]
        step.add_(1 if skip is None else skip.logical_not().to(step.device))


def _plain_step_(
    slots: Sequence[Slot],
    *,
    skip: Tensor | None,
    grad_scale: Tensor | None,
    clip: Tensor | None,
    **options: Any,
) -> None:
    if not slots:
        return
    grads = [slot.grad for slot in slots]
    if clip is not None:
        grads = [_clipped(g, clip, grad_scale) for g in grads]
    elif grad_scale is not None:
        grads = [g / grad_scale for g in grads]
    if skip is None:
        _call(slots, grads, **options)
        return
    keys = *_moments(options), "step"
    changed = [slot.param for slot in slots] + [slot.state[key] for key in keys for slot in slots]
    before = [t.clone() for t in changed]
    _call(slots, grads, **options)
    for now, old in zip(changed, before, strict=True):
        now.copy_(torch.where(skip.to(now.device), old, now))


def _parts(slots: Sequence[Slot]) -> Iterator[list[Slot]]:
    """Yield the work in lists of about one chunk; only row-major tensors are cut.

    As vectors, so that pieces end where the kernel's own vectors do: the rest of one is rounded
    otherwise.
    """
    yield from ([slot] for slot in slots if not slot.param.is_contiguous())
    flat = [_flat(slot) if slot.param.ndim > 1 else slot for slot in slots]
    yield from chunks([slot for slot in flat if slot.param.is_contiguous()])


def _flat(slot: Slot) -> Slot:
    if not slot.param.is_contiguous():
        return slot
    state = {key: value.view(-1) if value.ndim else value for key, value in slot.state.items()}
    return Slot(slot.param.view(-1), slot.grad.view(-1), state, slot.noise)


def _clipped(grad: Tensor, clip: Tensor, grad_scale: Tensor | None) -> Tensor:
    if grad_scale is not None:
        grad = grad / grad_scale
    return (grad * clip.to(grad.device)).to(grad.dtype)


def _widened_step_(slot: Slot, **options: Any) -> None:
    """Step on wide copies of one parameter and its moments, piece by piece of its rows."""
    step = slot.state["step"]
    before = step.clone()
    for piece in slot.pieces():
        # Each piece takes the same step.
        step.copy_(before)
        _widened_piece_(piece, **options)


def _widened_piece_(slot: Slot, **options: Any) -> None:
    """Step on wide copies of a parameter and its moments, and round each back once."""
    dtype = arithmetic_dtype(slot.param.dtype)
    # Of the gradient too: a fused step with a scaler writes to it.
    param, grad = slot.param.to(dtype, copy=True), slot.grad.to(dtype, copy=True)
    keys = _moments(options)
    wide = {key: slot.state[key].to(dtype, copy=True) for key in keys}
    _torch_step_([Slot(param, grad, {**wide, "step": slot.state["step"]})], **options)
    for key in keys:
        store_moment_(slot.state[key], None, wide[key])
    # A value that bfloat16 holds exactly is rounded to itself, so a skipped step stays skipped.
    store_parameter_(slot.param, param, slot.noise)


def _moments(options: Mapping[str, Any]) -> tuple[str, ...]:
    more = ("max_exp_avg_sq",) if options["amsgrad"] else ()
    return ("exp_avg", "exp_avg_sq", *more)


def _call(slots: Sequence[Slot], grads: list[Tensor], **options: Any) -> None:
    lists = {key: [slot.state[key] for slot in slots] for key in (*_moments(options), "step")}
    adamw(
        [slot.param for slot in slots],
        grads,
        lists["exp_avg"],
        lists["exp_avg_sq"],
        lists.get("max_exp_avg_sq", []),
        lists["step"],
        has_complex=any(slot.param.is_complex() for slot in slots),
        differentiable=False,
        **options,
    )
