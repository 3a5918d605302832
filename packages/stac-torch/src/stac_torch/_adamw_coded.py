"""The AdamW section on moments in codes: the rule ``ADAMW`` of ``stam_core``, tensor by tensor."""

from typing import Any, NamedTuple

import torch
from stam_core import ADAMW, AS_WRITTEN, decayed_step
from torch import Tensor

from stac_torch import _namespace
from stac_torch._dtypes import arithmetic_dtype
from stac_torch._records import Slot
from stac_torch._sign import load_moment, store_moment_, store_parameter_


class _Numbers(NamedTuple):
    """The hyperparameters by the rule's names, checked when the group was."""

    b1: float
    b2: float
    eps: float
    amsgrad: bool
    maximize: bool


def coded_step_(
    slot: Slot,
    *,
    skip: Tensor | None,
    grad_scale: Tensor | None,
    clip: Tensor | None,
    lr: float | Tensor,
    beta1: float,
    beta2: float,
    weight_decay: float,
    eps: float,
    amsgrad: bool,
    maximize: bool,
    **forms: Any,
) -> None:
    """Take one step in place; the arguments are those of ``stac_torch._adamw.adamw_step_``."""
    del forms
    step = slot.state["step"]
    step.add_(1 if skip is None else skip.logical_not())
    hp: Any = _Numbers(beta1, beta2, eps, amsgrad, maximize)
    lr = lr.reshape(()) if isinstance(lr, Tensor) else lr
    for param, grad, state, noise in slot.pieces():
        dtype = arithmetic_dtype(param.dtype)
        g = grad.to(dtype)
        if grad_scale is not None:
            g = g / grad_scale
        if clip is not None:
            g = g * clip.to(g)
        g = ADAMW.prepare(g, hp, xp=_namespace)
        keys = {m.name: m.torch for m in ADAMW.moments_of(hp)}
        old = {
            name: load_moment(state[key], state[f"{key}_scale"], dtype, param.shape)
            for name, key in keys.items()
        }
        new = ADAMW.accumulate(g, old, {}, hp, xp=_namespace, exact=AS_WRITTEN)
        d = ADAMW.direction(g, new, {}, step, hp, xp=_namespace)
        p = decayed_step(param.to(dtype), d, lr, weight_decay)
        if skip is not None:
            p = torch.where(skip, param.to(dtype), p)
        store_parameter_(param, p, noise)
        for name, key in keys.items():
            store_moment_(state[key], state[f"{key}_scale"], new[name], noise=noise, skip=skip)
