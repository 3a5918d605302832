"""Which form takes a step: the one place where ``fused`` and ``foreach`` become a choice.

All forms of an update have the bits of its loop, so that the choice is one of speed alone: a group
that leaves both options at None gets the fastest form that takes its tensors as they are now, and
where one of them does not suit, its group takes the next form. Nothing of it is kept: parameters,
gradients and states may be replaced between two steps, and the kernels follow addresses.

The exception is the AdamW section: torch's fused kernel rounds otherwise than its loop does, so it
is taken where it is asked for alone.
"""

from collections.abc import Mapping, Sequence
from operator import attrgetter, le
from typing import Any

import torch
from torch import Tensor
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from stac_torch._adamw import is_torchs
from stac_torch._int8 import scale_shape
from stac_torch._kernel import cpu_kernel, why_no_cpu_kernel
from stac_torch._layout import are_locked, hold_entries, is_dense
from stac_torch._records import PLAIN, Slot
from stac_torch._report import Form
from stac_torch._sign import can_foreach

FUSED, FOREACH, LOOP = "fused", "foreach", "loop"
KERNEL_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

_FOREACH_DEVICES = frozenset({"cuda", "xpu"})
_CLASSES, _DTYPES = frozenset(PLAIN), frozenset(KERNEL_DTYPES)
_dtype, _is_cpu, _shape = map(attrgetter, ("dtype", "is_cpu", "shape"))
# What torch sends each operation through for dispatch modes and ``torch.func``.
_FOLLOWERS = torch._C.DispatchKey.Python, torch._C.DispatchKey.FuncTorchDynamicLayerFrontMode
_TRACED = "the step is traced"


def sign_form(
    group: Mapping[str, Any], slots: Sequence[Slot], *, tallied: bool = False, planned: bool = False
) -> Form:
    """Return the form of the sign section.

    Args:
        group: The group.
        slots: What this rank holds of its parameters that have gradients, as reals.
        tallied: Whether the step counts what it does.
        planned: Whether gradients and states that are not there yet are on the meta device.
    """
    if group["fused"] and (torch.compiler.is_compiling() or not followed()):
        return Form(FUSED)
    why = _TRACED if watched() else asked(group)
    why = why or ("track_diagnostics=True counts in the loop" if tallied else "")
    why = why or why_no_kernel(slots, planned=planned)
    if not why:
        return Form(FUSED)
    foreach = group["foreach"]
    if foreach is None:
        foreach = all(slot.param.device.type in _FOREACH_DEVICES for slot in slots)
    return Form(FOREACH if foreach and not tallied and can_foreach(slots) else LOOP, why)


def adamw_form(group: Mapping[str, Any], slots: Sequence[Slot]) -> Form:
    """Return the form of the AdamW section."""
    if group["fused"]:
        return Form(FUSED)
    why = asked(group) or "torch's fused AdamW rounds otherwise than its loop"
    foreach = group["foreach"]
    if foreach is None:
        # As torch chooses.
        on_device = all(slot.param.device.type in _FOREACH_DEVICES for slot in slots)
        foreach = on_device and (group["capturable"] or not isinstance(group["lr"], Tensor))
    return Form(FOREACH if foreach and all(map(is_torchs, slots)) else LOOP, why)


def rule_form(group: Mapping[str, Any], slots: Sequence[Slot]) -> Form:
    """Return the form of a rule of ``stam_core``."""
    looped = any(is_looped(group, slot.param.dtype) for slot in slots)
    return Form(LOOP if looped else FOREACH, asked(group) or "no kernel computes this rule")


def is_looped(group: Mapping[str, Any], dtype: torch.dtype) -> bool:
    """Tell whether a rule is called operation by operation on parameters of a dtype."""
    return torch.compiler.is_compiling() or group["foreach"] is False or dtype.is_complex


def asked(group: Mapping[str, Any]) -> str:
    """Return the option of a group that leaves no choice; empty where there is one."""
    for option in ("fused", "foreach"):
        if group.get(option) is not None:
            return f"{option}={group[option]}"
    return ""


def takes_look(grads: Sequence[Tensor]) -> bool:
    """Tell whether the CPU kernel looks for bad entries of gradients in host memory."""
    if watched():
        return False
    # Those with gaps would be copied.
    known = {*map(type, grads)} <= _CLASSES and {*map(_dtype, grads)} <= _DTYPES
    dense = known and (all(map(Tensor.is_contiguous, grads)) or all(map(is_dense, grads)))
    return dense and hold_entries(grads) and cpu_kernel() is not None


def watched() -> bool:
    """Tell whether a compiler or another follower would miss the operations of a kernel."""
    return torch.compiler.is_compiling() or followed()


def followed() -> bool:
    """Tell whether something follows each operation of torch, and would miss those of a kernel."""
    included = any(map(torch._C._dispatch_tls_is_dispatch_key_included, _FOLLOWERS))
    if included or torch._C._get_tracing_state() is not None:
        return True
    # A default device changes nothing here.
    return any(type(mode) is not DeviceContext for mode in _get_current_function_mode_stack())


def why_no_kernel(slots: Sequence[Slot], *, planned: bool = False) -> str:
    """Say in one clause why no kernel takes these tensors unasked; empty where one does.

    It follows addresses, copies nothing and has no order of tensors. Looked at list by list: with
    thousands of small tensors a step is bound by such looks.

    Args:
        slots: The tensors.
        planned: Whether gradients and states that are not there yet are on the meta device.
    """
    params, grads = [slot.param for slot in slots], [slot.grad for slot in slots]
    kinds = {p.device.type for p in params if not p.is_cpu}
    if kinds == {"cuda"}:
        return "the CUDA kernel has not run on a GPU yet, so that only fused=True takes it"
    if kinds:
        return f"no kernel runs on {', '.join(sorted(kinds))}"
    owners = [slot for slot in slots if "exp_avg" in slot.state]
    coded = [slot for slot in slots if "exp_avg_scale" in slot.state]
    if not all(map(_is_int8, coded)):
        return "of codes only int8 has a kernel"
    moments = [slot.state["exp_avg"] for slot in owners if "exp_avg_scale" not in slot.state]
    codes = [slot.state[key] for slot in coded for key in ("exp_avg", "exp_avg_scale")]
    tensors = [*params, *grads, *moments, *codes]
    if not {*map(type, tensors)} <= _CLASSES:
        return "a tensor is of a subclass"
    unread = {*map(_dtype, (*params, *grads, *moments))} - _DTYPES
    if unread:
        return f"no kernel reads {unread.pop()}"
    held = [t for t in tensors if not t.is_meta] if planned else tensors
    fits = [*map(_shape, grads)] == [*map(_shape, params)] and all(map(_is_cpu, held))
    if not fits or any(slot.state["exp_avg"].shape != slot.param.shape for slot in owners):
        return "a gradient or a state has not the shape and device of its parameter"
    if not hold_entries(held):
        return "the memory of a tensor does not hold its entries"
    if are_locked([*params, *moments, *codes]):
        return "a tensor was made under inference_mode"
    if any(slot.noise and slot.noise.offset for slot in slots):
        return "stochastic rounding of a shard has no kernel"
    if not all(map(Tensor.is_contiguous, tensors)) and not all(map(_in_one_order, slots)):
        return "a tensor has gaps in memory, or an order that no kernel walks"
    if _share_memory([*params, *moments, *codes], grads):
        return "tensors share memory"
    return why_no_cpu_kernel()


def _is_int8(slot: Slot) -> bool:
    moment, scale = slot.state.get("exp_avg"), slot.state["exp_avg_scale"]
    if moment is None or moment.dtype is not torch.int8 or scale.dtype is not torch.float32:
        return False
    return scale.shape == scale_shape(slot.param.shape) and scale.is_contiguous()


def _in_one_order(slot: Slot) -> bool:
    tensors = [slot.param, slot.grad, *(t for key, t in slot.state.items() if key == "exp_avg")]
    if all(map(Tensor.is_contiguous, tensors)):
        return True
    row_major = slot.noise is not None or "exp_avg_scale" in slot.state
    return not row_major and is_dense(slot.param) and len({t.stride() for t in tensors}) == 1


def _share_memory(written: Sequence[Tensor], read: Sequence[Tensor]) -> bool:
    """Tell whether what is written overlaps anything else; what is read may overlap itself."""
    ends: dict[int, int] = {}
    for t in read:
        start = t.data_ptr()
        ends[start] = max(start + t.nbytes, ends.get(start, 0))
    only_read = set(ends)
    for t in written:
        start = t.data_ptr()
        # Empty ones, and those on the meta device, are nowhere.
        if start:
            if start in ends:
                return True
            ends[start] = start + t.nbytes
    order = sorted(ends)
    if all(map(le, map(ends.__getitem__, order), order[1:])):
        return False
    free = unread = 0
    for start in order:
        if start < free or (start < unread and start not in only_read):
            return True
        if start in only_read:
            unread = max(unread, ends[start])
        else:
            free = ends[start]
    return False
