"""The AdamW section: torch's own AdamW, called on this section's tensors.

Nothing is reimplemented: ``last_n_layers`` of all layers is ``torch.optim.AdamW`` bit for bit, with
its loop, foreach and capturable forms. This module adds what torch's function lacks: moments in
another dtype than the parameter's, a skip flag on the device, and stochastic rounding.
"""

from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from stac_torch._dtypes import arithmetic_dtype
from stac_torch._fused import laid_out_like
from stac_torch._local import real
from stac_torch._rounding import Noise
from stac_torch._sign import row_ranges, store_moment_, store_parameter_

_T = TypeVar("_T")


@dataclass
class AdamWTensors:
    """The tensors of the section, one entry per parameter; local, possibly complex.

    Attributes:
        params: Parameters.
        grads: Gradients.
        exp_avgs: First moments.
        exp_avg_sqs: Second moments.
        max_exp_avg_sqs: Their running maxima; empty without amsgrad.
        steps: Steps taken, 0-d float32.
        noises: Where to draw the noise of stochastic rounding, None to round to nearest.
    """

    params: list[Tensor] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)
    exp_avgs: list[Tensor] = field(default_factory=list)
    exp_avg_sqs: list[Tensor] = field(default_factory=list)
    max_exp_avg_sqs: list[Tensor] = field(default_factory=list)
    steps: list[Tensor] = field(default_factory=list)
    noises: list[Noise | None] = field(default_factory=list)

    def take(self, indices: list[int]) -> "AdamWTensors":
        """Return the entries at ``indices``."""

        def pick(entries: list[_T]) -> list[_T]:
            return [entries[i] for i in indices] if entries else []

        return AdamWTensors(
            pick(self.params),
            pick(self.grads),
            pick(self.exp_avgs),
            pick(self.exp_avg_sqs),
            pick(self.max_exp_avg_sqs),
            pick(self.steps),
            pick(self.noises),
        )

    def rows(self, start: int, stop: int) -> "AdamWTensors":
        """Return the rows [start, stop) of the first parameter, with its counter."""
        noise = self.noises[0]
        if noise is not None:
            noise = noise.shifted(start * self.params[0][0].numel())
        return AdamWTensors(
            [self.params[0][start:stop]],
            [self.grads[0][start:stop]],
            [self.exp_avgs[0][start:stop]],
            [self.exp_avg_sqs[0][start:stop]],
            [m[start:stop] for m in self.max_exp_avg_sqs],
            self.steps,
            [noise],
        )

    def as_reals(self) -> "AdamWTensors":
        """Return the entries, complex ones as their two parts."""
        return AdamWTensors(
            list(map(real, self.params)),
            list(map(real, self.grads)),
            list(map(real, self.exp_avgs)),
            list(map(real, self.exp_avg_sqs)),
            list(map(real, self.max_exp_avg_sqs)),
            self.steps,
            self.noises,
        )

    def moments(self) -> list[Tensor]:
        """Return every moment tensor."""
        return [*self.exp_avgs, *self.exp_avg_sqs, *self.max_exp_avg_sqs]


def adamw_step_(
    tensors: AdamWTensors,
    *,
    skip: Tensor | None,
    grad_scale: Tensor | None,
    **options: Any,
) -> None:
    """Take one step of the section in place.

    Args:
        tensors: The tensors.
        skip: None, or a 0-d boolean tensor: where true the step leaves everything as it is.
        grad_scale: None, or the 0-d factor that a gradient scaler left in the gradients.
        options: What :func:`torch.optim.adamw.adamw` takes beside tensors.
    """
    widened: list[int] = []
    own: list[int] = []
    for index, (param, exp_avg) in enumerate(zip(tensors.params, tensors.exp_avgs, strict=True)):
        foreign = exp_avg.dtype is not param.dtype or tensors.noises[index] is not None
        (widened if foreign else own).append(index)
    for index in widened:
        reals = tensors.take([index]).as_reals()
        _widened_step_(reals, skip=skip, grad_scale=grad_scale, **options)
    if own:
        _torch_step_(tensors.take(own), skip=skip, grad_scale=grad_scale, **options)


def _torch_step_(
    tensors: AdamWTensors,
    *,
    skip: Tensor | None,
    grad_scale: Tensor | None,
    fused: bool | None,
    **options: Any,
) -> None:
    if fused:
        # Torch's kernel skips by itself, and like it leaves unscaled gradients behind.
        found_inf = None if skip is None else skip.to(torch.float32)
        # On the CPU it walks all tensors as if they had one order of memory.
        pairs = zip(tensors.params, tensors.grads, strict=True)
        tensors = replace(tensors, grads=[laid_out_like(p, g) for p, g in pairs])
        _call(tensors, fused=True, grad_scale=grad_scale, found_inf=found_inf, **options)
        return
    if grad_scale is not None:
        tensors = AdamWTensors(
            **{**vars(tensors), "grads": [g / grad_scale for g in tensors.grads]}
        )
    if skip is None:
        _call(tensors, **options)
        return
    changed = [*tensors.params, *tensors.moments(), *tensors.steps]
    before = [t.clone() for t in changed]
    _call(tensors, **options)
    for now, old in zip(changed, before, strict=True):
        now.copy_(torch.where(skip.to(now.device), old, now))


def _widened_step_(tensors: AdamWTensors, **options: Any) -> None:
    """Step on wide copies of one parameter and its moments, piece by piece of its rows."""
    (step,) = tensors.steps
    before = step.clone()
    for start, stop in row_ranges(tensors.params[0]):
        # Each piece takes the same step.
        step.copy_(before)
        _widened_piece_(tensors.rows(start, stop) if stop else tensors, **options)


def _widened_piece_(tensors: AdamWTensors, **options: Any) -> None:
    """Step on wide copies of a parameter and its moments, and round each back once."""
    dtype = arithmetic_dtype(tensors.params[0].dtype)
    wide = AdamWTensors(
        [tensors.params[0].to(dtype, copy=True)],
        # A copy too: a fused step with a scaler writes to it.
        [tensors.grads[0].to(dtype, copy=True)],
        [tensors.exp_avgs[0].to(dtype, copy=True)],
        [tensors.exp_avg_sqs[0].to(dtype, copy=True)],
        [m.to(dtype, copy=True) for m in tensors.max_exp_avg_sqs],
        tensors.steps,
        [None],
    )
    _torch_step_(wide, **options)
    for stored, value in zip(tensors.moments(), wide.moments(), strict=True):
        store_moment_(stored, None, value)
    # A value that bfloat16 holds exactly is rounded to itself, so a skipped step stays skipped.
    store_parameter_(tensors.params[0], wide.params[0], tensors.noises[0])


def _call(tensors: AdamWTensors, **options: Any) -> None:
    adamw(
        tensors.params,
        tensors.grads,
        tensors.exp_avgs,
        tensors.exp_avg_sqs,
        tensors.max_exp_avg_sqs,
        tensors.steps,
        has_complex=any(p.is_complex() for p in tensors.params),
        differentiable=False,
        **options,
    )
