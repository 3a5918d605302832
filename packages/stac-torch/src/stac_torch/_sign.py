"""The sign update on tensors in place: the readable loop, and its multi-tensor form.

Per entry, with gradient g, moment m and parameter p (equations (1) and (2) of ``stam_core``):

    m  = sm*m + (1-sm)*g
    p <- p*(1 - lr*wd) - lr*sign(m)

m is computed in float32 at least, its sign is taken there, and it is rounded to its storage dtype
once. p is rounded once too where it is stored in 16 bits.
"""

# pyright: reportPrivateImportUsage=false
# The multi-tensor functions have no public names; torch's own optimizers call them so.

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from stac_torch import _int8
from stac_torch._dtypes import arithmetic_dtype
from stac_torch._report import Tally
from stac_torch._rounding import Noise, round_stochastically_

# Bounds the temporaries of a step. On a device 16 Mi entries, 64 MiB in float32, spare launches; on
# the CPU 256 Ki stay in the second-level cache, and memory is read and written once.
CHUNK_ENTRIES = 1 << 24
CPU_CHUNK_ENTRIES = 1 << 18


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
        tally: None, or where to count what the step does.
    """

    lr: float | Tensor
    weight_decay: float
    momentum: float
    maximize: bool
    propagate_nan: bool = False
    skip: Tensor | None = None
    grad_scale: Tensor | None = None
    tally: Tally | None = None


@dataclass
class SignTensors:
    """The tensors of one section, one entry per parameter; real and local.

    Attributes:
        params: Parameters.
        grads: Gradients.
        exp_avgs: First moments; empty without momentum.
        scales: Scales of 8-bit moments, None for a floating one.
        noises: Where to draw the noise of stochastic rounding, None to round to nearest.
    """

    params: list[Tensor] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)
    exp_avgs: list[Tensor] = field(default_factory=list)
    scales: list[Tensor | None] = field(default_factory=list)
    noises: list[Noise | None] = field(default_factory=list)

    def whole(self, index: int) -> "SignTensors":
        """Return one parameter and all that belongs to it."""
        return SignTensors(
            [self.params[index]],
            [self.grads[index]],
            [self.exp_avgs[index]] if self.exp_avgs else [],
            [self.scales[index]],
            [self.noises[index]],
        )

    def rows(self, index: int, start: int, stop: int) -> "SignTensors":
        """Return the rows [start, stop) of one parameter and of all that belongs to it."""
        scale = self.scales[index]
        noise = self.noises[index]
        row = self.params[index][0].numel()
        return SignTensors(
            [self.params[index][start:stop]],
            [self.grads[index][start:stop]],
            [self.exp_avgs[index][start:stop]] if self.exp_avgs else [],
            [None if scale is None else scale[start:stop]],
            [None if noise is None else noise.shifted(start * row)],
        )

    def extend(self, other: "SignTensors") -> None:
        """Append the entries of ``other``."""
        for entry in fields(self):
            getattr(self, entry.name).extend(getattr(other, entry.name))


def chunk_entries(parameter: Tensor) -> int:
    """Return how many entries a chunk may have on a parameter's device."""
    return CPU_CHUNK_ENTRIES if parameter.device.type == "cpu" else CHUNK_ENTRIES


def chunks(tensors: SignTensors) -> Iterator[SignTensors]:
    """Yield the work in pieces of about one chunk, large tensors cut between rows."""
    piece, size = SignTensors(), 0
    for index, parameter in enumerate(tensors.params):
        limit = chunk_entries(parameter)
        for start, stop in row_ranges(parameter):
            entry = tensors.rows(index, start, stop) if stop else tensors.whole(index)
            entries = entry.params[0].numel()
            if piece.params and size + entries > limit:
                yield piece
                piece, size = SignTensors(), 0
            piece.extend(entry)
            size += entries
    if piece.params:
        yield piece


def row_ranges(parameter: Tensor) -> Iterator[tuple[int, int]]:
    """Yield row ranges of at most one chunk; (0, 0) stands for the whole tensor."""
    limit = chunk_entries(parameter)
    if parameter.ndim == 0 or parameter.numel() <= limit:
        yield 0, 0
        return
    rows = max(1, limit * parameter.shape[0] // parameter.numel())
    for start in range(0, parameter.shape[0], rows):
        yield start, min(start + rows, parameter.shape[0])


def sign_step_(tensors: SignTensors, options: SignOptions) -> None:
    """Take one step, tensor by tensor."""
    for chunk in chunks(tensors):
        moments = chunk.exp_avgs or [None] * len(chunk.params)
        for p, g, m, scale, noise in zip(
            chunk.params, chunk.grads, moments, chunk.scales, chunk.noises, strict=True
        ):
            sign_update_(p, g, m, scale, noise, options)


def sign_update_(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor | None,
    scale: Tensor | None,
    noise: Noise | None,
    options: SignOptions,
) -> None:
    """Take one step on one tensor, in place.

    Args:
        param: Parameter, real.
        grad: Gradient, same shape.
        exp_avg: First moment, same shape, floating or int8; None without momentum.
        scale: Scales of an int8 moment.
        noise: Noise for a bfloat16 parameter; None to round to nearest.
        options: The rest.
    """
    dtype = arithmetic_dtype(param.dtype)
    m = grad.to(dtype)
    if options.grad_scale is not None:
        m = m / options.grad_scale
    if options.maximize:
        m = -m
    if exp_avg is not None:
        old = load_moment(exp_avg, scale, dtype)
        in_place = old is exp_avg and options.skip is None
        decayed = old.mul_(options.momentum) if in_place else old * options.momentum
        # Not `alpha=`: some devices would fuse it, and have other bits than the rest.
        m = decayed.add_(m * (1 - options.momentum))
        if not in_place:
            kept = m if options.skip is None else torch.where(options.skip, old, m)
            store_moment_(exp_avg, scale, kept)

    if options.propagate_nan:
        direction = (m * _huge(dtype)).mul_(_huge(dtype)).clamp_(-1, 1)
    else:
        direction = m.sign()
    if options.skip is not None:
        direction = torch.where(options.skip, 0.0, direction)
    update = direction * options.lr
    decay = 1 - options.lr * options.weight_decay
    if options.skip is not None:
        decay = torch.where(options.skip, 1.0, decay)

    before = None if options.tally is None else param.clone()
    p = param if param.dtype is dtype else param.to(dtype)
    if options.weight_decay != 0:
        p.mul_(decay)
    p.sub_(update)
    if p is not param:
        store_parameter_(param, p, noise)
    if options.tally is not None and before is not None:
        options.tally.count(before, param, direction, -grad if options.maximize else grad)


def _huge(dtype: torch.dtype) -> float:
    """Return a power of 2 whose square makes the smallest number that is not 0 larger than 1.

    Multiplied by it twice and clamped, a number becomes its sign and nan stays nan, in a quarter of
    the time that looking for nan beside ``torch.sign`` takes on the CPU.
    """
    return 2.0**1023 if dtype is torch.float64 else 2.0**127


def load_moment(exp_avg: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return a stored moment in the arithmetic dtype; the tensor itself where it has it."""
    return exp_avg.to(dtype) if scale is None else _int8.decode(exp_avg, scale).to(dtype)


def store_moment_(exp_avg: Tensor, scale: Tensor | None, value: Tensor) -> None:
    """Round a moment to its storage, to the largest finite value where it is too large for it."""
    if scale is not None:
        codes, new_scale = _int8.encode(value.to(torch.float32))
        exp_avg.copy_(codes)
        scale.copy_(new_scale)
        return
    largest = torch.finfo(exp_avg.dtype).max
    if largest < torch.finfo(value.dtype).max:
        value = value.clamp(-largest, largest)
    exp_avg.copy_(value)


def store_parameter_(param: Tensor, value: Tensor, noise: Noise | None) -> None:
    """Round a parameter to its storage, to nearest or, given noise, stochastically."""
    if noise is None:
        param.copy_(value)
    else:
        round_stochastically_(param, value, noise)


def can_foreach(tensors: SignTensors) -> bool:
    """Tell whether the multi-tensor form covers these tensors: floating state, nearest rounding."""
    return all(scale is None for scale in tensors.scales) and all(
        noise is None for noise in tensors.noises
    )


def sign_foreach_(tensors: SignTensors, options: SignOptions) -> None:
    """Take one step with one kernel launch per operation and chunk, to spare launches.

    The same values as :func:`sign_step_`, on tensors that share a device.
    """
    for chunk in chunks(tensors):
        by_dtype: dict[tuple[torch.dtype, ...], SignTensors] = {}
        for index, param in enumerate(chunk.params):
            entry = chunk.whole(index)
            key = (param.dtype, *(m.dtype for m in entry.exp_avgs))
            by_dtype.setdefault(key, SignTensors()).extend(entry)
        for group in by_dtype.values():
            _foreach_chunk_(group, options)


def _foreach_chunk_(tensors: SignTensors, options: SignOptions) -> None:
    dtype = arithmetic_dtype(tensors.params[0].dtype)
    m: Sequence[Tensor] = [g.to(dtype) for g in tensors.grads]
    if options.grad_scale is not None:
        m = torch._foreach_div(m, options.grad_scale)
    if options.maximize:
        m = torch._foreach_neg(m)
    if tensors.exp_avgs:
        old = [e.to(dtype) for e in tensors.exp_avgs]
        in_place = old[0] is tensors.exp_avgs[0] and options.skip is None
        if in_place:
            torch._foreach_mul_(old, options.momentum)
            decayed: Sequence[Tensor] = old
        else:
            decayed = torch._foreach_mul(old, options.momentum)
        torch._foreach_add_(decayed, torch._foreach_mul(m, 1 - options.momentum))
        m = decayed
        if not in_place:
            for e, before, after in zip(tensors.exp_avgs, old, m, strict=True):
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
    decay = 1 - options.lr * options.weight_decay
    if options.skip is not None:
        update = [torch.where(options.skip, 0.0, u) for u in update]
        decay = torch.where(options.skip, 1.0, decay)

    p = [param.to(dtype) for param in tensors.params]
    if options.weight_decay != 0:
        torch._foreach_mul_(p, decay)
    torch._foreach_sub_(p, update)
    for param, value in zip(tensors.params, p, strict=True):
        if value is not param:
            param.copy_(value)
