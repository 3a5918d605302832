"""The mean that the statistics use under JAX: over a leaf, over devices, keeping some axes."""

import math
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from stam_core import sample_stride, strided_sample

AxisName: TypeAlias = Hashable | Sequence[Hashable]
"""One mapped axis of ``jax.shard_map``, or several."""


def tensor_mean(x: jax.Array, kept: tuple[int, ...], axis_name: AxisName | None) -> jax.Array:
    """Return the mean of ``x`` over all axes that are not kept, and over the mapped axes.

    Args:
        x: Any floating or complex array; nothing to average gives 0.
        kept: Axes not averaged over; with any, the result keeps its number of dimensions.
        axis_name: Mapped axes over which a tensor is spread, or None.
    """
    if kept:
        axes = tuple(axis for axis in range(x.ndim) if axis not in kept)
        total = jnp.sum(x, axis=axes, keepdims=True)
        count = math.prod(x.shape[axis] for axis in axes)
    else:
        total = jnp.sum(x)
        count = x.size
    if axis_name is not None:
        total = lax.psum(total, axis_name)
        # The size of a shard is static, so this is a constant, not communication.
        count = lax.psum(count, axis_name)
    return total / jnp.maximum(jnp.asarray(count, jnp.finfo(x.dtype).dtype), 1)


def sample(x: jax.Array, n: int | None, kept: tuple[int, ...]) -> jax.Array:
    """Return the entries of ``x`` that the means read.

    Args:
        x: A leaf.
        n: The most entries to read of the leaf, or of each kept slice; None for all.
        kept: Axes kept apart.

    Returns:
        ``x`` itself, or a 1-d sample, or with kept axes a sample of shape (slices, entries).
    """
    if n is None or not kept:
        return strided_sample(x, n, xp=jnp)
    slices = jnp.moveaxis(x, kept, range(len(kept)))
    rest = slices.shape[len(kept) :]
    stride = sample_stride(rest, n)
    return slices.reshape(-1, math.prod(rest))[:, ::stride]


def mean_of_sample(
    kept: tuple[int, ...], n: int | None, axis_name: AxisName | None
) -> Callable[[jax.Array], jax.Array]:
    """Return the mean to inject into a rule that is given what :func:`sample` returned."""
    axes = (0,) if kept and n is not None else kept
    return partial(tensor_mean, kept=axes, axis_name=axis_name)
