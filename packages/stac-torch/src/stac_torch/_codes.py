"""Moments in codes: which parameters have one, and how it is made, read and written.

``"int8"`` is the code of ``stam_core.int8``, in the shape of the parameter. ``"int4"`` is that of
``stam_core.int4``, by the function that JAX calls too: two entries in a byte, of two dimensions.
Scales are beside both, of two dimensions too.
"""

from typing import cast

import torch
from stam_core import int4
from stam_core.int8 import has_code
from torch import Tensor

from stac_torch import _int8, _namespace
from stac_torch._dtypes import INT4, INT8, state_dtype
from stac_torch._local import zero_rows
from stac_torch._rounding import Noise, random_bits
from stac_torch._state import zeros

CODES = {torch.int8: INT8, torch.uint8: INT4}
"""Dtypes in which codes are stored, and the names of the codes."""


def is_coded(parameter: Tensor) -> bool:
    """Tell whether a code holds the moments of a parameter; decided on its global shape.

    Example:
        >>> [is_coded(torch.empty(s)) for s in ((64, 64), (63, 65), (8192,), (4096, 1))]
        [True, False, False, False]
    """
    return parameter.is_floating_point() and has_code(parameter.shape)


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
        moment = zeros(parameter, torch.int8)
    else:
        moment = zero_rows(parameter, int4.packed_shape(parameter.shape)[1], torch.uint8)
    _, blocks = scale_shape(moment, parameter.shape)
    return {key: moment, f"{key}_scale": zero_rows(parameter, blocks, torch.float32)}


def stored_shape(moment: Tensor, shape: torch.Size) -> tuple[int, ...]:
    """Return the shape in which the first moment of a parameter of a shape is stored."""
    packed = moment.dtype is torch.uint8 and len(shape) >= 2
    return int4.packed_shape(shape) if packed else tuple(shape)


def scale_shape(moment: Tensor, shape: torch.Size) -> tuple[int, int]:
    """Return the shape of the scales beside a stored moment."""
    code = int4 if moment.dtype is torch.uint8 else _int8
    return code.scale_shape(shape)


def decode(codes: Tensor, scale: Tensor, shape: torch.Size) -> Tensor:
    """Return the float32 values of a code."""
    if codes.dtype is torch.uint8:
        return int4.decode(codes, scale, shape, xp=_namespace)
    return _int8.decode(codes, scale)


def encode(value: Tensor, like: Tensor, noise: Noise | None) -> tuple[Tensor, Tensor]:
    """Return the codes and scales of a moment, in the code in which another is stored."""
    value = value.to(torch.float32)
    if like.dtype is not torch.uint8:
        return _int8.encode(value)
    bits = random_bits(cast("Noise", noise).of_moment(), value.numel(), value.device).view(
        value.shape
    )
    return int4.encode(value, bits, xp=_namespace)
