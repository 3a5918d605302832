"""An 8-bit code for momentum: one int8 per entry, one float32 scale per block of a row.

A row is one index of dimension 0. Blocks of 256 entries never cross a row, so sharding along
dimension 0 never cuts one, and a checkpoint can be resharded exactly. With s = max |m| of a block,

    code = sign(m) * round(127 * (|m| / s)^(1/4)),    m ~ sign(code) * s * (code / 127)^4

The root makes the error relative, as a float's: the smallest nonzero value is s/127^4, where a
linear code stops at s/127, puts every smaller entry to 0 and forgets its sign. Every operation is
one that IEEE 754 rounds correctly, so that all frameworks write the same codes.
"""

import math

from stam_core._typing import AS_WRITTEN, Array, Exact, Namespace

BLOCK = 256
MIN_ENTRIES = 4096
# A row costs at least one scale: below 16 entries that is more than a quarter byte per entry.
MIN_ROW = 16
LEVELS = 127
# 1/127 rounded to float32. Multiplied by, and not divided by 127: some devices do so anyway.
UNIT = 0.007874015718698502


def row_length(shape: tuple[int, ...]) -> int:
    """Return the number of entries in a row of a tensor of two dimensions or more."""
    return math.prod(shape[1:])


def has_int8_code(shape: tuple[int, ...]) -> bool:
    """Tell whether a real tensor of this (global) shape is stored in 8 bits; others in float32.

    Example:
        >>> [has_int8_code(shape) for shape in ((64, 64), (63, 65), (8192,), (4096, 1))]
        [True, False, False, False]
    """
    return len(shape) >= 2 and math.prod(shape) >= MIN_ENTRIES and row_length(shape) >= MIN_ROW


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
    blocks = _blocks(values, xp)
    magnitude = xp.abs(blocks)
    # Said, and not left to the maximum: compiled ones lose nan on some devices.
    bad = xp.any(xp.isnan(blocks), axis=-1)
    scale = xp.where(bad, xp.full_like(magnitude[..., 0], xp.nan), xp.max(magnitude, axis=-1))
    # An all-zero block divides by 1 and not by 0.
    divisor = xp.where(scale == 0, xp.ones_like(scale), scale)[..., None]
    share = exact.divide(magnitude, xp.broadcast_to(divisor, magnitude.shape))
    # Not 0, which would be divided by, and still a code 0: 127 * 1e-37^(1/4) rounds to it.
    share = xp.clip(share, 1e-37, None)
    # The root of a root, by the reciprocal roots that PyTorch rounds alike in all its builds.
    one = xp.ones_like(share)
    half = exact.divide(one, exact.keep(xp.sqrt(share)))
    root = exact.divide(one, exact.keep(xp.sqrt(half)))
    codes = xp.round(root * LEVELS) * xp.sign(blocks)
    codes = xp.astype(xp.where(xp.isfinite(codes), codes, xp.zeros_like(codes)), xp.int8)
    return _unblocked(codes, values.shape, xp), scale


def decode(codes: Array, scale: Array, *, xp: Namespace, exact: Exact = AS_WRITTEN) -> Array:
    """Return the float32 values of codes and scales; see :func:`encode`."""
    level = _blocks(xp.astype(codes, xp.float32), xp) * UNIT
    square = level * level
    value = xp.sign(level) * (square * square) * scale[..., None]
    return _unblocked(exact.keep(value), codes.shape, xp)


def _blocks(values: Array, xp: Namespace) -> Array:
    """Return ``(rows, blocks, BLOCK)``, each row filled up with zeros."""
    rows, blocks = scale_shape(values.shape)
    flat = xp.reshape(values, (rows, row_length(values.shape)))
    missing = blocks * BLOCK - flat.shape[1]
    if missing:
        # Zeros made of values, and not of nothing: on a mesh they lie where those do.
        zeros = xp.broadcast_to(xp.zeros_like(flat[:, :1]), (rows, missing))
        flat = xp.concat([flat, zeros], axis=1)
    return xp.reshape(flat, (rows, blocks, BLOCK))


def _unblocked(blocks: Array, shape: tuple[int, ...], xp: Namespace) -> Array:
    rows = xp.reshape(blocks, (blocks.shape[0], blocks.shape[1] * BLOCK))
    return xp.reshape(rows[:, : row_length(shape)], shape)


__all__ = [
    "BLOCK",
    "LEVELS",
    "UNIT",
    "decode",
    "encode",
    "has_int8_code",
    "row_length",
    "scale_shape",
]
