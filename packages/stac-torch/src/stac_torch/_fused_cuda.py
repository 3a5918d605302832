"""The sign step on CUDA: a launch per combination of dtypes, however many tensors there are.

Kernels find their tensors through a table of addresses on the device. It is copied there from
pinned memory, without waiting, when an address changed since the last step, which in a steady
training loop none does; the list of chunks depends on shapes alone.
"""

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from stac_torch import _triton_sign as kernels
from stac_torch._dtypes import arithmetic_dtype
from stac_torch._int8 import BLOCK
from stac_torch._layout import laid_out_like
from stac_torch._records import Slot
from stac_torch._sign import SignOptions

TILE, TILES = 4096, 4
INT8_BLOCKS = 8
_TYPES: dict[torch.dtype, Any] = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
}
# What a captured graph reads has to outlive it, and nothing says when a graph is gone.
_captured: list[Any] = []


@dataclass(frozen=True)
class Launch:
    """One kernel launch: the kernel, how many programs, and its arguments by name.

    The table holds addresses alone, so that copies of gradients are kept here until it has run: a
    freed one would be the next one's memory.
    """

    kernel: Any
    programs: int
    arguments: dict[str, Any]
    kept: tuple[Tensor, ...]

    def run(self) -> None:
        """Launch it."""
        # Contraction off: the bits of the plain path.
        self.kernel[(self.programs,)](**self.arguments, num_warps=8, enable_fp_fusion=False)


@dataclass(frozen=True)
class _Kind:
    """What the tensors of one launch have in common.

    Attributes:
        param: Dtype of the parameters.
        grad: Of the gradients.
        moment: Of the moments, None without momentum.
        noisy: Whether they are rounded stochastically.
        aligned: Whether addresses and lengths are multiples of 16, for loads of whole vectors.
    """

    param: torch.dtype
    grad: torch.dtype
    moment: torch.dtype | None
    noisy: bool
    aligned: bool


def sign_step_cuda_(slots: Sequence[Slot], options: SignOptions) -> None:
    """Take one step on tensors of one device, whose layouts were checked."""
    device = slots[0].param.device
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        for launch in launches(slots, options):
            launch.run()


def launches(slots: Sequence[Slot], options: SignOptions) -> list[Launch]:
    """Return the launches of one step."""
    rows: dict[_Kind, list[tuple[int, ...]]] = {}
    kept: list[Tensor] = []
    for p, grad, state, noise in slots:
        if p.numel() == 0:
            continue
        m, s = state.get("exp_avg"), state.get("exp_avg_scale")
        g = laid_out_like(p, grad)
        kept.append(g)
        addresses = [0 if t is None else t.data_ptr() for t in (p, g, m, s)]
        length = 0 if s is None else p.numel() // p.shape[0]
        kind = _Kind(
            p.dtype,
            g.dtype,
            None if m is None else m.dtype,
            noise is not None,
            all(number % 16 == 0 for number in (*addresses, p.numel(), length)),
        )
        drawn = (0, 0) if noise is None else (noise.key, noise.step.data_ptr())
        rows.setdefault(kind, []).append((*addresses, p.numel(), length, *drawn))
    device = slots[0].param.device
    return [
        _launch(kind, tuple(found), device, options, tuple(kept)) for kind, found in rows.items()
    ]


def _launch(
    kind: _Kind,
    rows: tuple[tuple[int, ...], ...],
    device: torch.device,
    options: SignOptions,
    kept: tuple[Tensor, ...],
) -> Launch:
    real = arithmetic_dtype(kind.param)
    quantized = kind.moment is torch.int8
    capturing = _capturing(device)
    # What is copied inside a capture is there from the first replay on: no eager step may find it.
    make_chunks = _chunks.__wrapped__ if capturing else _chunks
    make_table = _table.__wrapped__ if capturing else _table
    chunks = make_chunks(tuple(row[4:6] for row in rows), device, quantized=quantized)
    table = make_table(rows, device)
    shared = {
        "table": table,
        "chunks": chunks,
        "skip": _on(device, options.skip),
        "grad_scale": _on(device, options.grad_scale),
        "clip": _on(device, options.clip),
        **_hyperparameters(options, real, device),
        "PARAM": _TYPES[kind.param],
        "GRAD": _TYPES[kind.grad],
        "REAL": _TYPES[real],
        "ALIGNED": kind.aligned,
        "SKIPPABLE": options.skip is not None,
        "SCALED": options.grad_scale is not None,
        "CLIPPED": options.clip is not None,
        "MAXIMIZE": options.maximize,
        "PROPAGATE_NAN": options.propagate_nan,
        "NOISY": kind.noisy,
    }
    if capturing:
        _captured.append((table, chunks))
    if quantized:
        own = {"BLOCKS": INT8_BLOCKS}
        return Launch(kernels.step_int8, len(chunks), {**shared, **own}, kept)
    moment = kind.moment or kind.param
    largest = torch.finfo(moment).max
    own = {
        "largest": largest,
        "MOMENT": _TYPES[moment],
        "HAS_MOMENT": kind.moment is not None,
        "CLAMPED": largest < torch.finfo(real).max,
        "TILE": TILE,
        "TILES": TILES,
    }
    return Launch(kernels.step_floating, len(chunks), {**shared, **own}, kept)


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _on(device: torch.device, flag: Tensor | None) -> Tensor | None:
    return None if flag is None else flag.reshape(()).to(device, non_blocking=True)


def _hyperparameters(
    options: SignOptions, real: torch.dtype, device: torch.device
) -> dict[str, Any]:
    """Return the numbers of the rule: as numbers, or on the device where they are or must be."""
    values = {
        "lr": options.lr,
        "decay": options.decay,
        "momentum": options.momentum,
        "fresh": 1 - options.momentum,
    }
    lr_on_device = isinstance(options.lr, Tensor) and options.lr.device.type != "cpu"
    # Launches pass numbers in float32.
    if not lr_on_device and real is torch.float32:
        return {name: float(value) for name, value in values.items()} | {"ON_DEVICE": False}
    placed = {
        name: value.to(device, non_blocking=True)
        if isinstance(value, Tensor)
        else torch.full((), value, dtype=real, device=device)
        for name, value in values.items()
    }
    return placed | {"ON_DEVICE": True}


# Few: gradients that move make a new one each step, of up to a megabyte.
@functools.lru_cache(maxsize=16)
def _table(rows: tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    return _copied(torch.tensor(rows, dtype=torch.int64, device="cpu"), device)


@functools.lru_cache(maxsize=64)
def _chunks(sizes: tuple[tuple[int, ...], ...], device: torch.device, *, quantized: bool) -> Tensor:
    """Return (tensor, chunk) of each program, int32."""
    if quantized:
        blocks = [entries // length * -(-length // BLOCK) for entries, length in sizes]
        programs = [-(-count // INT8_BLOCKS) for count in blocks]
    else:
        programs = [-(-entries // (TILE * TILES)) for entries, _ in sizes]
    counts = torch.tensor(programs, device="cpu")
    tensor = torch.repeat_interleave(counts)
    first = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    chunk = torch.arange(len(tensor), device="cpu") - first
    return _copied(torch.stack([tensor, chunk], dim=1).to(torch.int32), device)


def _copied(values: Tensor, device: torch.device) -> Tensor:
    """Return values on a device, on a GPU without waiting for it."""
    if device.type != "cuda":
        return values.to(device)
    pinned = values.pin_memory()
    if _capturing(device):
        _captured.append(pinned)
    return pinned.to(device, non_blocking=True)
