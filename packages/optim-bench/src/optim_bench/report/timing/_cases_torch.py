"""Optimizer steps in PyTorch on given gradients."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import torch
from stac_torch import STAC, STAM, STAMLite
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW, Optimizer

from optim_bench.errors import BenchError
from optim_bench.report.timing._presets import Shape
from optim_bench.report.timing._rounds import Run

# Too small to change the parameters noticeably: a step costs the same at any rate.
RATE = 1e-6
# Above the norm: gradients that are clipped at each step would become another problem.
LIMIT = 1e6
POLICIES: tuple[Literal["propagate", "skip"], ...] = ("propagate", "skip")
STATE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": "int8"}


def _stac(state: str, policy: Literal["propagate", "skip"]) -> Callable[[list[Tensor]], Optimizer]:
    def make(params: list[Tensor]) -> Optimizer:
        return STAC(
            params,
            RATE,
            role="sign",
            sign_state_dtype=STATE_DTYPES[state],
            nonfinite=policy,
            fused=True,
        )

    return make


def _sections(params: list[Tensor]) -> list[dict[str, Any]]:
    """Return the embedding, which is the head, for AdamW, and the rest for the sign update."""
    return [{"params": params[1:], "role": "sign"}, {"params": params[:1], "role": "adamw"}]


def _clipped(state: str) -> Callable[[list[Tensor]], Optimizer]:
    return lambda params: STAC(
        _sections(params),
        RATE,
        sign_state_dtype=STATE_DTYPES[state],
        fused=True,
        max_grad_norm=LIMIT,
    )


CASES: Mapping[str, Callable[[list[Tensor]], Optimizer]] = MappingProxyType(
    {
        "adamw fused": lambda params: AdamW(params, RATE, fused=True),
        "adamw foreach": lambda params: AdamW(params, RATE, foreach=True),
        "stac foreach": lambda params: STAC(
            params, RATE, role="sign", nonfinite="propagate", foreach=True
        ),
        "adamw": lambda params: AdamW(params, RATE),
        "stac": lambda params: STAC(_sections(params), RATE),
        "stam": lambda params: STAM(params, RATE),
        "stam_lite": lambda params: STAMLite(params, RATE),
        **{f"stac clipped {state}": _clipped(state) for state in STATE_DTYPES},
        **{
            f"stac fused {state} {policy}": _stac(state, policy)
            for state in STATE_DTYPES
            for policy in POLICIES
        },
    }
)


# What a loop calls before the step.
BEFORE: Mapping[str, Callable[[list[Tensor]], object]] = MappingProxyType(
    {"adamw fused after clipping": lambda params: clip_grad_norm_(params, LIMIT, foreach=True)}
)


def _bytes(dtype: torch.dtype) -> Callable[[list[Tensor], list[Tensor]], Callable[[], object]]:
    """Return a step that reads p, g and m and writes p and m, with the least arithmetic."""

    def make(params: list[Tensor], grads: list[Tensor]) -> Callable[[], object]:
        moments = [torch.zeros_like(p, dtype=dtype) for p in params]

        def step() -> None:
            for p, g, m in zip(params, grads, moments, strict=True):
                p.add_(g)
                m.neg_() if dtype.is_floating_point else m.bitwise_not_()

        return step

    return make


def _read(params: list[Tensor], grads: list[Tensor]) -> Callable[[], object]:
    return lambda: [g.amax() for g in grads]


FLOORS: Mapping[str, Callable[[list[Tensor], list[Tensor]], Callable[[], object]]] = (
    MappingProxyType(
        {
            "bytes float32": _bytes(torch.float32),
            "bytes bfloat16": _bytes(torch.bfloat16),
            "bytes int8": _bytes(torch.int8),
            "read of g": _read,
        }
    )
)


def device_name(device: str) -> str | None:
    """Return what an accelerator calls itself, None for the CPU.

    Raises:
        BenchError: there is none.
    """
    if device == "cpu":
        return None
    if not torch.cuda.is_available():
        raise BenchError("this preset needs a CUDA device, and PyTorch finds none on this machine")
    return torch.cuda.get_device_name()


class Tensors:
    """Parameters and gradients of a list of shapes; the gradients are shared by all cases."""

    def __init__(self, shapes: Sequence[Shape], device: str = "cpu", seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.device = device
        self.params = [0.02 * torch.randn(shape, generator=generator) for shape in shapes]
        grads = [0.01 * torch.randn(shape, generator=generator) for shape in shapes]
        self.grads = [grad.to(device) for grad in grads]

    def run(self, case: str) -> Run:
        """Return what takes n steps of a case and waits for the last one."""
        params = [value.to(self.device, copy=True) for value in self.params]
        if case in FLOORS:
            step = FLOORS[case](params, self.grads)
        else:
            for param, grad in zip(params, self.grads, strict=True):
                param.requires_grad_().grad = grad
            take = CASES[case.removesuffix(" after clipping")](params).step
            before = BEFORE.get(case)

            def step() -> None:
                if before is not None:
                    before(params)
                take()

        def run(n: int) -> None:
            for _ in range(n):
                step()
            # On the CPU a step returns when it is done.
            if self.device != "cpu":
                torch.cuda.synchronize()

        return run
