"""A 4-bit code for momentum: two entries in a byte, one float32 scale per block of a row.

Blocks of 128 entries never cross a row, which is one index of dimension 0. With s = max |m| of a
block and t = 49 |m| / s, which is between the squares k^2 and (k+1)^2 of two levels of 0, ..., 7,

    code = sign(m) * (k + 1   with the probability (t - k^2) / (2k + 1),   else k)
    m ~ sign(code) * code^2 * s / 49

The mean over the noise is m, so that what is smaller than half the distance of two levels is not
lost, step after step. Squares of levels and not the levels: a linear code has nothing between 0 and
s/7. The noise is given, 16 bits for each entry.

The quotient t is one that IEEE 754 rounds correctly and all that follows it is exact, but for the
root, whose last bits do not matter: where it takes the wrong k, the probability is 0 or 1. So all
frameworks write the same codes.
"""

from stam_core._blocks import blocked, has_code, row_length, shares, unblocked
from stam_core._typing import AS_WRITTEN, Array, Exact, Namespace

BLOCK = 128
LEVELS = 7
# 1/49 rounded to float32.
UNIT = 0.020408162847161293


def scale_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the shape of the scales of a tensor: rows, blocks in a row."""
    return shape[0], -(-row_length(shape) // BLOCK)


def packed_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the shape of the bytes of a tensor: rows, pairs in a row.

    Example:
        >>> packed_shape((64, 65)), packed_shape((32, 3, 5, 5))
        ((64, 33), (32, 38))
    """
    return shape[0], -(-row_length(shape) // 2)


def encode(
    values: Array, noise: Array, *, xp: Namespace, exact: Exact = AS_WRITTEN
) -> tuple[Array, Array]:
    """Return packed codes and scales of ``values``.

    Args:
        values: float32, at least two dimensions.
        noise: Whole numbers in [0, 65536) in any dtype, shape of ``values``; see
            :func:`stam_core.noise.random_bits`.
        xp: The array namespace of both.
        exact: How to keep operations apart under a compiler.

    Returns:
        The codes, uint8, :func:`packed_shape`: the entry with the even place in its row in the
        lower half of a byte, each in two's complement. The scales, float32, :func:`scale_shape`. A
        block with a value that is not finite decodes to nan.

    Example:
        >>> import numpy as np
        >>> values = np.asarray([[4.0, -1.0, 0.01, 0.0, 3.0]], np.float32)
        >>> for noise in (np.zeros((1, 5)), np.full((1, 5), 40000)):
        ...     packed, scale = encode(values, noise, xp=np)
        ...     print(packed.tolist(), decode(packed, scale, values.shape, xp=np).round(3).tolist())
        [[199, 1, 7]] [[4.0, -1.306, 0.082, 0.0, 4.0]]
        [[215, 0, 6]] [[4.0, -0.735, 0.0, 0.0, 2.939]]
    """
    blocks = blocked(values, BLOCK, xp=xp)
    share, scale = shares(blocks, xp=xp, exact=exact)
    t = exact.keep(share * (LEVELS * LEVELS))
    level = xp.floor(xp.sqrt(t))
    draw = blocked(xp.astype(noise, xp.float32), BLOCK, xp=xp)
    up = draw * (2 * level + 1) < (t - level * level) * 65536
    codes = (level + xp.astype(up, xp.float32)) * xp.sign(blocks)
    codes = xp.astype(xp.where(xp.isfinite(codes), codes, xp.zeros_like(codes)), xp.int32)
    rows, pairs = packed_shape(values.shape)
    # A row of blocks has an even length.
    codes = xp.reshape(codes, (rows, codes.shape[1] * BLOCK))[:, : 2 * pairs]
    codes = xp.reshape(codes, (rows, pairs, 2)) & 15
    return xp.astype(codes[..., 0] | (codes[..., 1] << 4), xp.uint8), scale


def decode(
    packed: Array,
    scale: Array,
    shape: tuple[int, ...],
    *,
    xp: Namespace,
    exact: Exact = AS_WRITTEN,
) -> Array:
    """Return the float32 values of packed codes and scales, in a shape; see :func:`encode`."""
    whole = xp.astype(packed, xp.int32)
    pairs = xp.stack([whole & 15, whole >> 4], axis=-1)
    level = xp.astype((pairs ^ 8) - 8, xp.float32)
    rows = xp.reshape(level, (packed.shape[0], 2 * packed.shape[1]))[:, : row_length(shape)]
    level = blocked(rows, BLOCK, xp=xp)
    value = (level * xp.abs(level)) * exact.keep(scale * UNIT)[..., None]
    return unblocked(exact.keep(value), shape, xp=xp)


__all__ = ["BLOCK", "LEVELS", "UNIT", "decode", "encode", "has_code", "packed_shape", "scale_shape"]
