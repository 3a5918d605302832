"""Moments in codes: which parameters have one, and how it is made, read and written.

``"int8"`` are the codes of ``stam_core.int8``, in the shape of the parameter: int8, and uint8 for
squares. ``"int4"`` is that of ``stam_core.int4``, uint8 of two dimensions with two entries in a
byte. Scales are beside all, of two dimensions too. What is in uint8 is rounded stochastically.
"""

from typing import cast

import torch
from stam_core import int4, int8
from torch import Tensor

from stac_torch import _int8, _namespace
from stac_torch._dtypes import INT4, INT8, state_dtype
from stac_torch._local import zero_rows
from stac_torch._rounding import Noise, random_bits
from stac_torch._state import zeros

SQUARES = frozenset({"exp_avg_sq", "max_exp_avg_sq"})
"""Keys of moments that hold squares."""


def code_name(moment: Tensor, shape: torch.Size) -> str | None:
    """Return the name of the code in which a parameter of a shape has a stored moment, or None."""
    if moment.dtype is torch.uint8:
        return INT8 if moment.shape == shape else INT4
    return INT8 if moment.dtype is torch.int8 else None


def is_coded(parameter: Tensor) -> bool:
    """Tell whether a code holds the moments of a parameter; decided on its global shape.

    Example:
        >>> [is_coded(torch.empty(s)) for s in ((64, 64), (63, 65), (8192,), (4096, 1))]
        [True, False, False, False]
    """
    return parameter.is_floating_point() and int8.has_code(parameter.shape)


def new_moment(key: str, name: str | None, parameter: Tensor) -> dict[str, Tensor]:
    """Return a moment before the first step, with its scales if it is in a code.

    Args:
        key: Its key of state.
        name: The name of its storage; None for the parameter's dtype.
        parameter: The parameter.
    """
    if name not in (INT8, INT4):
        return {key: zeros(parameter, state_dtype(name, parameter))}
    if not is_coded(parameter):
        return {key: zeros(parameter, torch.float32)}
    if name == INT8:
        moment = zeros(parameter, torch.uint8 if key in SQUARES else torch.int8)
    else:
        moment = zero_rows(parameter, int4.packed_shape(parameter.shape)[1], torch.uint8)
    _, blocks = scale_shape(moment, parameter.shape)
    return {key: moment, f"{key}_scale": zero_rows(parameter, blocks, torch.float32)}


def stored_shape(moment: Tensor, shape: torch.Size) -> tuple[int, ...]:
    """Return the shape in which a parameter of a shape has such a moment stored."""
    return int4.packed_shape(shape) if code_name(moment, shape) == INT4 else tuple(shape)


def scale_shape(moment: Tensor, shape: torch.Size) -> tuple[int, int]:
    """Return the shape of the scales beside a stored moment."""
    code = int4 if code_name(moment, shape) == INT4 else _int8
    return code.scale_shape(shape)


def decode(codes: Tensor, scale: Tensor, shape: torch.Size) -> Tensor:
    """Return the float32 values of a code."""
    if codes.dtype is torch.int8:
        return _int8.decode(codes, scale)
    if codes.shape == shape:
        return int8.decode_squares(codes, scale, xp=_namespace)
    return int4.decode(codes, scale, shape, xp=_namespace)


def encode(value: Tensor, like: Tensor, noise: Noise | None) -> tuple[Tensor, Tensor]:
    """Return the codes and scales of a moment, in the code in which another is stored."""
    value = value.to(torch.float32)
    if like.dtype is torch.int8:
        return _int8.encode(value)
    drawn = random_bits(cast("Noise", noise).of_moment(), value.numel(), value.device)
    written = int8.encode_squares if like.shape == value.shape else int4.encode
    return written(value, drawn.view(value.shape), xp=_namespace)
