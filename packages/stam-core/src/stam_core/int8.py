"""An 8-bit code for momentum: one int8 per entry, one float32 scale per block of a row.

Blocks of 256 entries never cross a row, which is one index of dimension 0. With s = max |m| of a
block,

    code = sign(m) * round(127 * (|m| / s)^(1/4)),    m ~ sign(code) * s * (code / 127)^4

The root makes the error relative, as a float's: the smallest nonzero value is s/127^4, where a
linear code stops at s/127, puts every smaller entry to 0 and forgets its sign. Every operation is
one that IEEE 754 rounds correctly, so that all frameworks write the same codes.
"""

from stam_core._blocks import blocked, has_code, row_length, shares, unblocked
from stam_core._typing import AS_WRITTEN, Array, Exact, Namespace

BLOCK = 256
LEVELS = 127
# 1/127 rounded to float32. Multiplied by, and not divided by 127: some devices do so anyway.
UNIT = 0.007874015718698502


def scale_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the shape of the scales of a tensor: rows, blocks in a row."""
    return shape[0], -(-row_length(shape) // BLOCK)


def encode(values: Array, *, xp: Namespace, exact: Exact = AS_WRITTEN) -> tuple[Array, Array]:
    """Return codes and scales of ``values``.

    Args:
        values: float32, at least two dimensions.
        xp: The array namespace of ``values``.
        exact: How to keep operations apart under a compiler.

    Returns:
        The codes, int8, shape of ``values``; the scales, float32, ``(rows, blocks)``. A block with
        a value that is not finite decodes to nan.

    Example:
        >>> import numpy as np
        >>> codes, scale = encode(np.asarray([[4.0, -1.0, 0.01, 0.0]], np.float32), xp=np)
        >>> codes.tolist(), scale.tolist()
        ([[127, -90, 28, 0]], [[4.0]])
        >>> decode(codes, scale, xp=np).round(4).tolist()
        [[4.0, -1.0088..., 0.0095..., 0.0]]
    """
    blocks = blocked(values, BLOCK, xp=xp)
    share, scale = shares(blocks, xp=xp, exact=exact)
    # Not 0, which would be divided by, and still a code 0: 127 * 1e-37^(1/4) rounds to it.
    share = xp.clip(share, 1e-37, None)
    # The root of a root, by the reciprocal roots that PyTorch rounds alike in all its builds.
    one = xp.ones_like(share)
    half = exact.divide(one, exact.keep(xp.sqrt(share)))
    root = exact.divide(one, exact.keep(xp.sqrt(half)))
    codes = xp.round(root * LEVELS) * xp.sign(blocks)
    codes = xp.astype(xp.where(xp.isfinite(codes), codes, xp.zeros_like(codes)), xp.int8)
    return unblocked(codes, values.shape, xp=xp), scale


def decode(codes: Array, scale: Array, *, xp: Namespace, exact: Exact = AS_WRITTEN) -> Array:
    """Return the float32 values of codes and scales; see :func:`encode`."""
    level = blocked(xp.astype(codes, xp.float32), BLOCK, xp=xp) * UNIT
    square = level * level
    value = xp.sign(level) * (square * square) * scale[..., None]
    return unblocked(exact.keep(value), codes.shape, xp=xp)


__all__ = [
    "BLOCK",
    "LEVELS",
    "UNIT",
    "decode",
    "encode",
    "has_code",
    "row_length",
    "scale_shape",
]
