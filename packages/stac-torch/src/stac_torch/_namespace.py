"""The part of the Python array API that the rules of ``stam_core`` use, by torch's functions."""

# ruff: noqa: A004  (the names of the standard)

from math import inf, nan

import torch
from torch import (
    Tensor,
    abs,
    clip,
    expm1,
    full_like,
    imag,
    isfinite,
    isnan,
    log,
    logical_and,
    maximum,
    ones_like,
    real,
    reshape,
    sign,
    sqrt,
    stack,
    sum,
    where,
    zeros_like,
)

__all__ = [
    "abs",
    "astype",
    "clip",
    "expm1",
    "full_like",
    "imag",
    "inf",
    "isdtype",
    "isfinite",
    "isnan",
    "log",
    "logical_and",
    "maximum",
    "nan",
    "ones_like",
    "real",
    "reshape",
    "sign",
    "sqrt",
    "stack",
    "sum",
    "where",
    "zeros_like",
]


def astype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``x`` in another dtype."""
    return x.to(dtype)


def isdtype(dtype: torch.dtype, kind: str) -> bool:
    """Tell whether a dtype is of a kind."""
    return {"complex floating": dtype.is_complex, "real floating": dtype.is_floating_point}[kind]
