"""The kernels of the sign step, and what ``fused=True`` refuses.

On the CPU a C kernel from the wheel (:mod:`stac_torch._fused_cpu`), on CUDA a Triton kernel
(:mod:`stac_torch._fused_cuda`). Where neither can run this raises: a user who asked for the fast
path must not get a slow one unawares.
"""

import importlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from stac_torch._codes import code_name
from stac_torch._dtypes import INT8
from stac_torch._forms import KERNEL_DTYPES as DTYPES
from stac_torch._forms import followed
from stac_torch._fused_cpu import all_finite_cpu, sign_step_cpu_
from stac_torch._int8 import scale_shape
from stac_torch._kernel import required_cpu_kernel
from stac_torch._layout import are_locked, hold_entries, is_dense, same_layout
from stac_torch._local import local
from stac_torch._records import Slot, by_device
from stac_torch._sign import SignOptions

DEVICES = ("cpu", "cuda")
_WHY_NOT_COMPILED = "fused=True is compiled already: use fused=False to compile the whole step"


def check_fused_group(group: Mapping[str, Any]) -> None:
    """Check the option ``fused`` of a group against the others, in torch's words.

    Raises:
        TypeError: It is neither None nor a boolean.
        RuntimeError: The group asks for two implementations.
    """
    if group["fused"] not in (None, True, False):
        msg = f"fused must be None, True or False, got {group['fused']!r}"
        raise TypeError(msg)
    if group["fused"] and group["foreach"]:
        msg = "`fused` and `foreach` cannot be `True` together."
        raise RuntimeError(msg)


@torch.compiler.disable(reason=_WHY_NOT_COMPILED)
def prepare_fused(
    groups: Iterable[Mapping[str, Any]], states: Mapping[Tensor, Mapping[str, Any]]
) -> None:
    """Check, before a step changes anything, that the kernels are there and take these tensors.

    Raises:
        RuntimeError: A parameter with a gradient is on another device, not floating, or laid out as
            no kernel can walk it; its gradient or state does not belong to it as it is now; or a
            kernel is missing.
    """
    devices: set[str] = set()
    written: list[Tensor] = []
    names: list[str] = []
    for group in groups:
        if not group.get("fused"):
            continue
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            p = local(parameter)
            _check_parameter(p)
            devices.add(p.device.type)
            state = states.get(parameter, {})
            moments = _checked_moments(parameter, p, state, written)
            written.append(p)
            names += (*state, "param")
            for tensor in (p, *moments):
                if not tensor.is_contiguous():
                    _check_layout(group, p, moments)
    _check_memory(written, names)
    if "cpu" in devices:
        required_cpu_kernel()
    if "cuda" in devices:
        require_triton()


def _check_parameter(p: Tensor) -> None:
    if p.device.type not in DEVICES or p.dtype not in DTYPES:
        # Torch's own sentence.
        msg = (
            "`fused=True` requires all the params to be floating point Tensors of supported "
            f"devices: {list(DEVICES)} but {p.dtype} and {p.device.type}"
        )
        raise RuntimeError(msg)


def _checked_moments(
    parameter: Tensor, p: Tensor, state: Mapping[str, Any], written: list[Tensor]
) -> list[Tensor]:
    """Return the local moments of a parameter, all of its state and its gradient checked.

    All of the state is added to ``written``.

    The kernels follow addresses: they would read past the end of a state that was made before the
    parameter was replaced by a larger one, or on the device that it has left.
    """
    plain, shape, device, grad = p is parameter, p.shape, p.device, parameter.grad
    whole = shape if plain else parameter.shape
    if grad is not None and (
        grad.shape != whole or grad.device != device or grad.dtype not in DTYPES
    ):
        _refuse("a gradient", grad, p)
    moments: list[Tensor] = []
    for key, stored in state.items():
        value = stored if plain else local(stored)
        if f"{key}_scale" in state and (value.dtype is torch.uint8 or "exp_avg_sq" in state):
            msg = (
                f"`fused=True` has no kernel for an {key} in {code_name(value, shape)}, which a "
                f"parameter of shape {tuple(whole)} has: set group['fused'] to None"
            )
            raise RuntimeError(msg)
        if key == "step":
            fits = value.dtype is torch.float32
        elif key == "exp_avg_scale":
            wanted = value.dtype is torch.float32 and value.is_contiguous()
            fits = wanted and value.shape == scale_shape(shape)
        else:
            quantized = key == "exp_avg" and "exp_avg_scale" in state
            known = value.dtype is torch.int8 if quantized else value.dtype in DTYPES
            fits = known and value.shape == shape
            moments.append(value)
        if not fits or value.device != device:
            _refuse(f"the state {key!r}", value, p)
        written.append(value)
    return moments


def _check_memory(written: Sequence[Tensor], names: Sequence[str]) -> None:
    if are_locked(written):
        what = next(name for name, t in zip(names, written, strict=True) if are_locked((t,)))
        # Torch's own sentence.
        msg = (
            "Inplace update to inference tensor outside InferenceMode is not allowed: "
            f"{what!r} was made under torch.inference_mode(), and so only a clone of it may change"
        )
        raise RuntimeError(msg)
    # What follows operations may have wrapped them.
    if not followed() and not hold_entries(written):
        what = next(name for name, t in zip(names, written, strict=True) if not hold_entries((t,)))
        msg = (
            f"`fused=True` cannot write to {what!r}: its memory does not hold its entries, as with "
            "freed storage or a view of the opposite numbers. Give a clone, or use fused=False"
        )
        raise RuntimeError(msg)


def _refuse(what: str, found: Tensor, p: Tensor) -> None:
    def described(tensor: Tensor) -> str:
        return f"shape {tuple(tensor.shape)}, {tensor.dtype} on {tensor.device}"

    msg = (
        f"`fused=True` cannot use {what} of {described(found)} for a parameter of {described(p)}: "
        "was the parameter moved or replaced since, or the state cast? Save the optimizer's "
        "state_dict() before and load it afterwards, or build the optimizer anew"
    )
    raise RuntimeError(msg)


def _check_layout(group: Mapping[str, Any], p: Tensor, moments: Sequence[Tensor]) -> None:
    int8 = group["sign_state_dtype"] == INT8 or any(m.dtype is torch.int8 for m in moments)
    row_major = group["role"] == "sign" and (int8 or group["stochastic_rounding"])
    ordered = p.is_contiguous() if row_major else is_dense(p)
    if not ordered or not all(same_layout(m, p) for m in moments):
        msg = (
            f"`fused=True` cannot walk a parameter of shape {tuple(p.shape)} and strides "
            f"{p.stride()} with moments of strides {[m.stride() for m in moments]}: it needs "
            "memory without gaps in one order for all, and row-major order for an int8 momentum or "
            "stochastic rounding. Make the parameter contiguous, or use fused=False"
        )
        raise RuntimeError(msg)


def require_triton() -> None:
    """Raise unless Triton can be imported.

    Raises:
        RuntimeError: It cannot.
    """
    try:
        importlib.import_module("triton")
    except ImportError as error:
        msg = (
            f"fused=True on CUDA needs Triton, which cannot be imported ({error}): install the "
            "triton that belongs to this torch, or use fused=False"
        )
        raise RuntimeError(msg) from error


def waits_for_nothing(groups: Iterable[Mapping[str, Any]]) -> bool:
    """Tell whether a group is fused on CUDA, where a step must not wait for the device."""
    return any(group.get("fused") and any(p.is_cuda for p in group["params"]) for group in groups)


@torch.compiler.disable(reason=_WHY_NOT_COMPILED)
def sign_fused_(slots: list[Slot], options: SignOptions) -> None:
    """Take one step with one kernel launch per device and combination of dtypes.

    The values of :func:`stac_torch._sign.sign_step_`, on tensors that :func:`prepare_fused` let by.
    """
    # Kernels follow addresses: without this a graph that saved a parameter would not notice.
    increment_version([slot.param for slot in slots])
    increment_version([value for slot in slots for value in slot.state.values()])
    for device, part in by_device(slots).items():
        if device.type == "cpu":
            sign_step_cpu_(part, options)
        else:
            # Triton comes with the CUDA builds of torch alone.
            from stac_torch._fused_cuda import sign_step_cuda_

            sign_step_cuda_(part, options)


@torch.compiler.disable(reason=_WHY_NOT_COMPILED)
def all_finite_fused(grads: Sequence[Tensor]) -> bool:
    """Tell whether every entry of gradients in host memory is finite."""
    return all_finite_cpu(grads)
