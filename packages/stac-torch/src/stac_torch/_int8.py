"""The 8-bit code for momentum of ``stam_core.int8``, by torch's own operations.

The same codes and scales, bit for bit. The fourth root is two reciprocal square roots, because CPUs
round these alike and the plain ones not: which library computes them depends on the build of torch.
"""

import torch
from stam_core.int8 import BLOCK, LEVELS, UNIT, row_length, scale_shape
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["BLOCK", "decode", "encode", "saturated_share", "scale_shape"]


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
    codes = (root * LEVELS).round() * flat.sign()
    codes = codes.nan_to_num(0.0).to(torch.int8)
    return codes.view(rows, -1)[:, :length].reshape(values.shape), scale


def decode(codes: Tensor, scale: Tensor) -> Tensor:
    """Return the float32 values of codes and scales; see :func:`encode`."""
    rows, blocks = scale.shape
    length = row_length(codes.shape)
    level = codes.reshape(rows, length).to(torch.float32) * UNIT
    level = pad(level.square().square().copysign(level), (0, blocks * BLOCK - length)).view(
        rows, blocks, BLOCK
    )
    return (level * scale.unsqueeze(-1)).view(rows, -1)[:, :length].reshape(codes.shape)


def saturated_share(codes: Tensor) -> Tensor:
    """Return the share of entries that sit at the end of the code, as a 0-d tensor."""
    return (codes.abs() == LEVELS).to(torch.float32).mean()
