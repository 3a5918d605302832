"""Both Triton kernels in Triton's interpreter, compared bit for bit with the plain path.

    TRITON_INTERPRET=1 python triton_script.py

A process of its own, because Triton decides at import whether it interprets.
"""

import copy
import itertools
import sys

import numpy as np
import torch
from stac_torch import _fused_cuda, _int8, _sign
from stac_torch._records import Slot
from stac_torch._rounding import Noise

SHAPES = [(9, 300), (17, 33), (2000,), (), (20, 256)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
MOMENTS = [None, torch.float32, torch.bfloat16, torch.float16, torch.int8]
OPTIONS = [
    {"skip": torch.tensor(True)},
    {"maximize": True, "grad_scale": torch.tensor(3.0), "clip": torch.tensor(0.3)},
    {"skip": torch.tensor(False), "lr": torch.tensor(2e-3), "weight_decay": 0.0},
    {"propagate_nan": False, "clip": torch.tensor(0.3)},
]


def problem(dtype, moment, noisy):
    generator = torch.Generator().manual_seed(0)
    slots = []
    for number, shape in enumerate(SHAPES):
        size = 10 ** torch.empty(shape).uniform_(-6, 0, generator=generator)
        grad = (torch.randn(shape, generator=generator) * size).to(dtype)
        if grad.numel() > 100:
            special = torch.tensor([0.0, float("nan"), float("inf"), -float("inf"), 1e30])
            grad.view(-1)[:5] = special.to(dtype)
        param = (0.02 * torch.randn(shape, generator=generator)).to(dtype)
        noise = Noise(123_456_789 + number, torch.tensor(3.0)) if noisy else None
        state = {}
        if moment is not None:
            value = 0.01 * torch.randn(shape, generator=generator)
            if moment is torch.int8 and len(shape) == 2:
                codes, state["exp_avg_scale"] = _int8.encode(value)
                state["exp_avg"] = codes.contiguous()
            else:
                state["exp_avg"] = value.to(torch.float32 if moment is torch.int8 else moment)
        slots.append(Slot(param, grad, state, noise))
    return slots


def compare(dtype, moment, given, noisy):
    usual = {"lr": 1e-3, "weight_decay": 0.1, "momentum": 0.9, "maximize": False}
    options = _sign.SignOptions(**{**usual, "propagate_nan": True, **given})
    plain = problem(dtype, moment, noisy)
    fused = copy.deepcopy(plain)
    _sign.sign_step_(plain, options)
    _fused_cuda.sign_step_cuda_(fused, options)
    for a, b in zip(plain, fused, strict=True):
        for one, other in ((a.param, b.param), (a.state, b.state)):
            torch.testing.assert_close(other, one, rtol=0, atol=0, equal_nan=True)


def main():
    count = 0
    # Small tiles make many programs of small tensors, and the interpreter computes whole tiles.
    _fused_cuda.TILE, _fused_cuda.TILES, _fused_cuda.INT8_BLOCKS = 512, 2, 4
    # NumPy, which interprets, says so of what these kernels do on purpose.
    with np.errstate(all="ignore"):
        pairs = itertools.product(DTYPES, MOMENTS)
        for (dtype, moment), given in zip(pairs, itertools.cycle(OPTIONS)):
            for noisy in (False, True) if dtype is torch.bfloat16 else (False,):
                compare(dtype, moment, given, noisy)
                count += 1
    sys.stdout.write(str(count))


if __name__ == "__main__":
    main()
