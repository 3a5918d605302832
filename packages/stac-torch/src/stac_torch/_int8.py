"""An 8-bit code for momentum: one int8 per entry, one float32 scale per block of a row.

A row is one index of dimension 0. Blocks of 256 entries never cross a row, so sharding along
dimension 0 never cuts one, and a checkpoint can be resharded exactly. With s = max |m| of a block,

    code = sign(m) * round(127 * (|m| / s)^(1/4)),    m ~ sign(code) * s * (code / 127)^4

The root makes the error relative, as a float's: the smallest nonzero value is s/127^4, where a
linear code stops at s/127, puts every smaller entry to 0 and forgets its sign. The fourth root is
two reciprocal square roots, because CPUs round these alike and the plain ones not: which library
computes them depends on the build of torch.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

BLOCK = 256
MIN_ENTRIES = 4096
# A row costs at least one scale: below 16 entries that is more than a quarter byte per entry.
MIN_ROW = 16
_LEVELS = 127
# Multiplied by, and not divided by _LEVELS: some devices do so anyway, with other bits.
_UNIT = torch.tensor(1 / _LEVELS, dtype=torch.float32, device="cpu").item()


def row_length(shape: torch.Size) -> int:
    """Return the number of entries in a row of a tensor of two dimensions or more."""
    return math.prod(shape[1:])


def is_quantized(parameter: Tensor) -> bool:
    """Tell whether the momentum of a parameter is stored in 8 bits; decided on its global shape.

    Example:
        >>> [is_quantized(torch.empty(s)) for s in ((64, 64), (63, 65), (8192,), (4096, 1))]
        [True, False, False, False]
    """
    shape = parameter.shape
    return (
        parameter.ndim >= 2
        and parameter.is_floating_point()
        and math.prod(shape) >= MIN_ENTRIES
        and row_length(shape) >= MIN_ROW
    )


def scale_shape(shape: torch.Size) -> tuple[int, int]:
    """Return the shape of the scales of a tensor: rows, blocks in a row."""
    return shape[0], -(-row_length(shape) // BLOCK)


def encode(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return codes and scales of ``values``.

    Args:
        values: float32, at least two dimensions.

    Returns:
        The codes, int8, shape of ``values``; the scales, float32, ``(rows, blocks)``. A block with
        a value that is not finite decodes to nan.

    Example:
        >>> codes, scale = encode(torch.tensor([[4.0, -1.0, 0.01, 0.0]]))
        >>> codes.tolist(), scale.tolist()
        ([[127, -90, 28, 0]], [[4.0]])
        >>> decode(codes, scale).numpy().round(4).tolist()
        [[4.0, -1.0088, 0.0095, 0.0]]
    """
    rows, blocks = scale_shape(values.shape)
    length = row_length(values.shape)
    flat = pad(values.reshape(rows, length), (0, blocks * BLOCK - length)).view(rows, blocks, BLOCK)
    magnitude = flat.abs()
    scale = magnitude.amax(-1)
    # An all-zero block divides by 1 and not by 0.
    root = (magnitude / torch.where(scale == 0, 1.0, scale).unsqueeze(-1)).rsqrt().rsqrt()
    codes = (root * _LEVELS).round() * flat.sign()
    codes = codes.nan_to_num(0.0).to(torch.int8)
    return codes.view(rows, -1)[:, :length].reshape(values.shape), scale


def decode(codes: Tensor, scale: Tensor) -> Tensor:
    """Return the float32 values of codes and scales; see :func:`encode`."""
    rows, blocks = scale.shape
    length = row_length(codes.shape)
    level = codes.reshape(rows, length).to(torch.float32) * _UNIT
    level = pad(level.square().square().copysign(level), (0, blocks * BLOCK - length)).view(
        rows, blocks, BLOCK
    )
    return (level * scale.unsqueeze(-1)).view(rows, -1)[:, :length].reshape(codes.shape)


def saturated_share(codes: Tensor) -> Tensor:
    """Return the share of entries that sit at the end of the code, as a 0-d tensor."""
    return (codes.abs() == _LEVELS).to(torch.float32).mean()
