"""The sign step on the CPU in one pass over memory: the compiled kernel of ``csrc/sign.c``.

Its values are those of the plain path bit for bit. It works in place and in pieces that stay in the
first-level cache, so it needs no temporaries beside a table of 64 bytes per tensor, except for a
gradient that is laid out otherwise than its parameter, which is copied.
"""

import ctypes
import os
from array import array
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from stam_core.int8 import row_length
from torch import Tensor
from torch.autograd.profiler import record_function

from stac_torch._kernel import required_cpu_kernel, run_team
from stac_torch._layout import hold_entries, laid_out_like, same_layout
from stac_torch._records import Slot
from stac_torch._sign import SignOptions

_FIELDS, _ENTRIES = 8, 4
_GRAIN = 1 << 15
_PROCESS = os.getpid()
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int8, None)
_CODES = {dtype: code for code, dtype in enumerate(_DTYPES)}


class _Options(ctypes.Structure):
    """``options`` of ``csrc/sign.c``."""

    _fields_ = (
        *((name, ctypes.c_double) for name in ("lr", "decay", "momentum", "fresh")),
        *((name, ctypes.c_double) for name in ("grad_scale", "clip")),
        *((name, ctypes.c_int64) for name in ("param", "grad", "moment")),
        *((name, ctypes.c_int64) for name in ("propagate_nan", "nonfinite")),
    )


def sign_step_cpu_(slots: Sequence[Slot], options: SignOptions) -> None:
    """Take one step on tensors in host memory, whose layouts were checked."""
    if options.skip is not None and bool(options.skip):
        return
    clip = 1.0 if options.clip is None else float(options.clip)
    given = _Options(
        lr=float(options.lr),
        decay=float(options.decay),
        momentum=options.momentum,
        fresh=1 - options.momentum,
        grad_scale=0.0 if options.grad_scale is None else float(options.grad_scale),
        clip=-clip if options.maximize else clip,
        propagate_nan=options.propagate_nan,
    )
    tables: dict[tuple[int, int, int], array[int]] = {}
    kept: list[Tensor] = []
    whole = hold_entries([slot.grad for slot in slots])
    for p, grad, state, noise in slots:
        m, s = state.get("exp_avg"), state.get("exp_avg_scale")
        g = grad if whole and same_layout(grad, p) else laid_out_like(p, grad)
        # A copy has to outlive the call, which knows its address alone.
        kept.append(g)
        key = _CODES[p.dtype], _CODES[g.dtype], _CODES[None if m is None else m.dtype]
        tables.setdefault(key, array("q")).extend(
            (
                p.data_ptr(),
                g.data_ptr(),
                0 if m is None else m.data_ptr(),
                0 if s is None else s.data_ptr(),
                p.numel(),
                p.numel() if s is None else row_length(p.shape),
                -1 if noise is None else noise.key,
                0 if noise is None else int(noise.step),
            )
        )
    for (given.param, given.grad, given.moment), table in tables.items():
        _call("sign_step", table, given)


def all_finite_cpu(grads: Sequence[Tensor]) -> bool:
    """Tell whether every entry of gradients without gaps is finite, in one pass over memory."""
    tables: dict[int, array[int]] = {}
    for g in grads:
        row = (0, g.data_ptr(), 0, 0, g.numel(), g.numel(), -1, 0)
        tables.setdefault(_CODES[g.dtype], array("q")).extend(row)
    return all(_call("all_finite", table, _Options(grad=code)) for code, table in tables.items())


def _call(name: str, table: "array[int]", options: _Options) -> int:
    address, length = table.buffer_info()
    # A profiler sees operations of torch, of which this is none. To tell it costs where none is.
    profiled = torch.autograd._profiler_enabled()
    with record_function(f"stac_torch::{name}") if profiled else nullcontext():
        return getattr(required_cpu_kernel(), f"stac_{name}")(
            ctypes.c_void_p(address),
            ctypes.c_int64(length // _FIELDS),
            ctypes.byref(options),
            _threads(sum(table[_ENTRIES::_FIELDS])),
            run_team(),
        )


def _threads(entries: int) -> int:
    """Return how many threads to use for so many entries: one for each grain, as torch does.

    One in a forked process too: what OpenMP knows of the parent's threads would wait for them. If
    it was forked before this import, torch's own operations wait for them as well.
    """
    if os.getpid() != _PROCESS:
        return 1
    return min(torch.get_num_threads(), 1 + entries // _GRAIN)
