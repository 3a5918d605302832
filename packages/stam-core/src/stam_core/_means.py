"""Means and samples over one tensor, to be injected into the rules."""

import math

from stam_core._typing import Array, Namespace


def local_mean(x: Array, *, xp: Namespace, axes: tuple[int, ...] | None = None) -> Array:
    """Return the mean of ``x``; 0 where there is nothing to average.

    Args:
        x: Any array of a floating or complex dtype.
        xp: The array namespace of ``x``.
        axes: The axes to average over; None for all of them. With axes the result keeps its number
            of dimensions, so that it broadcasts against ``x``.

    Returns:
        A 0-d array, or one with size 1 along ``axes``.

    Example:
        >>> import numpy as np
        >>> float(local_mean(np.asarray([1.0, 2.0, 6.0]), xp=np))
        3.0
        >>> local_mean(np.asarray([[1.0, 3.0], [5.0, 9.0]]), xp=np, axes=(1,)).tolist()
        [[2.0], [7.0]]
        >>> float(local_mean(np.zeros((0, 4)), xp=np))
        0.0
    """
    if axes is None:
        count = math.prod(x.shape)
        return xp.sum(x) / max(count, 1)
    count = math.prod(x.shape[axis] for axis in axes)
    return xp.sum(x, axis=axes, keepdims=True) / max(count, 1)


def sample_stride(shape: tuple[int, ...], n: int) -> int:
    """Return the stride of the fixed sample of at most ``n`` entries of a tensor.

    The smallest stride that leaves at most ``n`` entries and shares no factor with the trailing
    dimension: a stride that divides the row length would read the same few columns for ever.

    Example:
        >>> sample_stride((4096, 4096), 4096)
        4097
        >>> sample_stride((10,), 16)
        1
    """
    size = math.prod(shape)
    stride = max(1, -(-size // n))
    if stride == 1 or len(shape) < 2:
        return stride
    row = shape[-1]
    while math.gcd(stride, row) != 1 and stride < size:
        stride += 1
    return stride


def strided_sample(x: Array, n: int | None, *, xp: Namespace) -> Array:
    """Return a fixed strided sample of at most ``n`` entries of ``x``, or all of ``x``.

    Args:
        x: Any array.
        n: The most entries to keep; None or a number not below the size returns ``x`` itself.
        xp: The array namespace of ``x``.

    Example:
        >>> import numpy as np
        >>> strided_sample(np.arange(12).reshape(3, 4), 4, xp=np).tolist()
        [0, 3, 6, 9]
    """
    if n is None or math.prod(x.shape) <= n:
        return x
    return xp.reshape(x, (-1,))[:: sample_stride(tuple(x.shape), n)]
