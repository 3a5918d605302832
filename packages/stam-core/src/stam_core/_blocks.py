"""Blocks of the rows of a tensor, which are coded together: what all codes of moments share.

A row is one index of dimension 0. Blocks never cross a row, so sharding along dimension 0 never
cuts one, and a checkpoint can be resharded exactly.
"""

import math

from stam_core._typing import Array, Exact, Namespace

MIN_ENTRIES = 4096
# A row costs at least one scale: below 16 entries that is more than a quarter byte per entry.
MIN_ROW = 16


def row_length(shape: tuple[int, ...]) -> int:
    """Return the number of entries in a row of a tensor of two dimensions or more."""
    return math.prod(shape[1:])


def has_code(shape: tuple[int, ...]) -> bool:
    """Tell whether a real tensor of this (global) shape is stored in a code; others in float32.

    Example:
        >>> [has_code(shape) for shape in ((64, 64), (63, 65), (8192,), (4096, 1))]
        [True, False, False, False]
    """
    return len(shape) >= 2 and math.prod(shape) >= MIN_ENTRIES and row_length(shape) >= MIN_ROW


def blocked(values: Array, size: int, *, xp: Namespace) -> Array:
    """Return ``(rows, blocks, size)``, each row filled up with zeros."""
    rows, length = values.shape[0], row_length(values.shape)
    blocks = -(-length // size)
    flat = xp.reshape(values, (rows, length))
    missing = blocks * size - length
    if missing:
        # Zeros made of values, and not of nothing: on a mesh they lie where those do.
        zeros = xp.broadcast_to(xp.zeros_like(flat[:, :1]), (rows, missing))
        flat = xp.concat([flat, zeros], axis=1)
    return xp.reshape(flat, (rows, blocks, size))


def unblocked(blocks: Array, shape: tuple[int, ...], *, xp: Namespace) -> Array:
    """Return the tensor of a shape whose rows were divided into blocks."""
    rows = xp.reshape(blocks, (blocks.shape[0], blocks.shape[1] * blocks.shape[2]))
    return xp.reshape(rows[:, : row_length(shape)], shape)


def shares(blocks: Array, *, xp: Namespace, exact: Exact) -> tuple[Array, Array]:
    """Return magnitudes as shares of the largest in their block, and the largest of each block.

    The largest is nan in a block with nan.
    """
    magnitude = xp.abs(blocks)
    # Said, and not left to the maximum: compiled ones lose nan on some devices.
    bad = xp.any(xp.isnan(blocks), axis=-1)
    scale = xp.where(bad, xp.full_like(magnitude[..., 0], xp.nan), xp.max(magnitude, axis=-1))
    # An all-zero block divides by 1 and not by 0.
    divisor = xp.where(scale == 0, xp.ones_like(scale), scale)[..., None]
    return exact.divide(magnitude, xp.broadcast_to(divisor, magnitude.shape)), scale
