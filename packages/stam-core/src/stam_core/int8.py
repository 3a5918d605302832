"""8-bit codes for moments: a byte per entry, one float32 scale per block of a row.

Blocks of 256 entries never cross a row, which is one index of dimension 0. With s = max |m| of a
block,

    code = sign(m) * round(127 * (|m| / s)^(1/4)),    m ~ sign(code) * s * (code / 127)^4

The root makes the error relative, as a float's: the smallest nonzero value is s/127^4, where a
linear code stops at s/127, puts every smaller entry to 0 and forgets its sign. Every operation is
one that IEEE 754 rounds correctly, so that all frameworks write the same codes.

Averages of squares have no sign, and change too slowly for a code that is rounded to nearest:
:func:`encode_squares` says what theirs is.
"""

from stam_core._blocks import blocked, has_code, row_length, shares, unblocked
from stam_core._typing import AS_WRITTEN, Array, Exact, Namespace

BLOCK = 256
LEVELS = 127
# 1/127 rounded to float32. Multiplied by, and not divided by 127: some devices do so anyway.
UNIT = 0.007874015718698502
SQUARE_LEVELS = 255
# 1/255 rounded to float32.
SQUARE_UNIT = 0.003921568859368563
_LARGEST = 3.4028234663852886e38


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
    codes = xp.round(_fourth_root(share, xp, exact) * LEVELS) * xp.sign(blocks)
    codes = xp.astype(xp.where(xp.isfinite(codes), codes, xp.zeros_like(codes)), xp.int8)
    return unblocked(codes, values.shape, xp=xp), scale


def encode_squares(
    values: Array, noise: Array, *, xp: Namespace, exact: Exact = AS_WRITTEN
) -> tuple[Array, Array]:
    """Return codes and scales of averages of squares, rounded stochastically.

    With s the largest v of a block and level(c) = s * (c / 255)^4, a code is the c or c + 1 between
    whose levels v is, with the probabilities whose mean is v; at least 1 where v is not 0, because
    an update is divided by the root. An average with the decay 0.999 changes by a thousandth in a
    step, and its levels are four hundredths apart: to nearest, it would never move.

    Args:
        values: float32, >= 0, at least two dimensions.
        noise: Whole numbers in [0, 65536) in any dtype, shape of ``values``; see
            :func:`stam_core.noise.random_bits`.
        xp: The array namespace of both.
        exact: How to keep operations apart under a compiler.

    Returns:
        The codes, uint8, shape of ``values``; the scales, float32, ``(rows, blocks)``. What is too
        large for float32 is its largest number; a block with nan decodes to nan.

    Example:
        >>> import numpy as np
        >>> values = np.asarray([[4.0, 0.01, 1e-20, 0.0]], np.float32)
        >>> for noise in (np.zeros((1, 4)), np.full((1, 4), 40000)):
        ...     codes, scale = encode_squares(values, noise, xp=np)
        ...     print(codes.tolist(), decode_squares(codes, scale, xp=np).tolist()[0][1])
        [[255, 58, 1, 0]] 0.01070...
        [[255, 57, 1, 0]] 0.00998...
    """
    blocks = xp.clip(blocked(values, BLOCK, xp=xp), None, _LARGEST)
    share, scale = shares(blocks, xp=xp, exact=exact)
    code = xp.floor(_fourth_root(share, xp, exact) * SQUARE_LEVELS)
    low = _fourth_power(code, exact)
    gap = _fourth_power(code + 1, exact) - low
    up = blocked(xp.astype(noise, xp.float32), BLOCK, xp=xp) * gap < (share - low) * 65536
    code = xp.clip(code + xp.astype(up, xp.float32), None, SQUARE_LEVELS)
    code = xp.where((blocks > 0) & (code < 1), xp.ones_like(code), code)
    code = xp.astype(xp.where(xp.isfinite(code), code, xp.zeros_like(code)), xp.uint8)
    return unblocked(code, values.shape, xp=xp), scale


def decode_squares(
    codes: Array, scale: Array, *, xp: Namespace, exact: Exact = AS_WRITTEN
) -> Array:
    """Return the float32 values of codes and scales; see :func:`encode_squares`."""
    level = _fourth_power(blocked(xp.astype(codes, xp.float32), BLOCK, xp=xp), exact)
    return unblocked(exact.keep(level * scale[..., None]), codes.shape, xp=xp)


def _fourth_root(share: Array, xp: Namespace, exact: Exact) -> Array:
    # Not 0, which would be divided by, and still a code 0: 127 * 1e-37^(1/4) rounds to it.
    share = xp.clip(share, 1e-37, None)
    # The root of a root, by the reciprocal roots that PyTorch rounds alike in all its builds.
    one = xp.ones_like(share)
    half = exact.divide(one, exact.keep(xp.sqrt(share)))
    return exact.divide(one, exact.keep(xp.sqrt(half)))


def _fourth_power(code: Array, exact: Exact) -> Array:
    level = exact.keep(code * SQUARE_UNIT)
    square = exact.keep(level * level)
    return exact.keep(square * square)


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
    "decode_squares",
    "encode",
    "encode_squares",
    "has_code",
    "row_length",
    "scale_shape",
]
