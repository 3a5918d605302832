"""The part of the Python array API that the rules of ``stam_core`` use, by torch's functions."""

# ruff: noqa: A001, A004  (the names of the standard)

from collections.abc import Sequence
from math import inf, nan

import torch
from torch import (
    Tensor,
    abs,
    broadcast_to,
    clip,
    expm1,
    float32,
    floor,
    full_like,
    imag,
    int32,
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
    uint8,
    where,
    zeros_like,
)

__all__ = [
    "abs",
    "any",
    "astype",
    "broadcast_to",
    "clip",
    "concat",
    "expm1",
    "float32",
    "floor",
    "full_like",
    "imag",
    "inf",
    "int32",
    "isdtype",
    "isfinite",
    "isnan",
    "log",
    "logical_and",
    "max",
    "maximum",
    "nan",
    "ones_like",
    "real",
    "reshape",
    "sign",
    "sqrt",
    "stack",
    "sum",
    "uint8",
    "where",
    "zeros_like",
]


def astype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``x`` in another dtype."""
    return x.to(dtype)


def isdtype(dtype: torch.dtype, kind: str) -> bool:
    """Tell whether a dtype is of a kind."""
    return {"complex floating": dtype.is_complex, "real floating": dtype.is_floating_point}[kind]


def any(x: Tensor, *, axis: int) -> Tensor:
    """Tell along an axis whether there is a true entry."""
    return torch.any(x, dim=axis)


def concat(arrays: Sequence[Tensor], *, axis: int) -> Tensor:
    """Return arrays joined along an axis."""
    return torch.cat(list(arrays), dim=axis)


def max(x: Tensor, *, axis: int) -> Tensor:
    """Return the largest entries along an axis."""
    return torch.amax(x, dim=axis)
