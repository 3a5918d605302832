"""The mean that the statistics use under JAX: over a leaf, over devices, keeping some axes."""

import math
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from stam_core import sample_stride, strided_sample

AxisName: TypeAlias = Hashable
"""One mapped axis of ``jax.shard_map``, or a tuple of several."""


# Entries read; below, a branch costs more than it saves.
NOT_WORTH_STORING = 2**17
# Entries of |g - m| that are stored at a time, two megabytes.
PIECE = 2**19
# Entries that lie side by side in a piece, at least.
SHORTEST_STRETCH = 64


class Average(NamedTuple):
    """The mean over what is read of a leaf, or of each of a stack, as a local sum and the rest.

    Attributes:
        kept: Axes of what is read that are not averaged over; with any, the sum keeps its number of
            dimensions.
        entries: How many entries of a shard each mean is taken over; of none, the mean is 0.
        axis_name: Mapped axes over which a tensor is spread, or None.
    """

    kept: tuple[int, ...]
    entries: int
    axis_name: AxisName | None

    def total(self, x: jax.Array) -> jax.Array:
        """Return the local sum of ``x`` over all axes that are not kept."""
        if not self.kept:
            return jnp.sum(x)
        axes = tuple(axis for axis in range(x.ndim) if axis not in self.kept)
        return jnp.sum(x, axis=axes, keepdims=True)

    def finish(self, totals: Sequence[jax.Array]) -> jax.Array:
        """Return the means that belong to local sums, as one vector."""
        total = jnp.concatenate([total.reshape(-1) for total in totals])
        count: Any = self.entries
        if self.axis_name is not None:
            spread = spread_over(total, self.axis_name)
            total = lax.psum(total, spread)
            # The size of a mapped axis is static, so this is a constant, not communication.
            count = count * lax.psum(1, spread)
        return total / jnp.maximum(jnp.asarray(count, jnp.finfo(total.dtype).dtype), 1)


def spread_over(x: jax.Array, axis_name: AxisName) -> AxisName:
    """Return those of the mapped axes along which ``x`` may differ.

    Along the others it is replicated, and JAX refuses a sum over both. All of them, where it is
    replicated along each, or where ``jax.shard_map`` does not keep track.
    """
    kind: Any = jax.typeof(x)
    # How the type says it changed with JAX 0.12.
    varying = kind.mat.varying if hasattr(kind, "mat") else kind.vma
    names = axis_name if isinstance(axis_name, tuple) else (axis_name,)
    return tuple(name for name in names if name in varying) or names


def average_of(
    leaves: int,
    shape: tuple[int, ...],
    kept: tuple[int, ...],
    n: int | None,
    axis_name: AxisName | None,
) -> Average:
    """Return the mean over what :func:`sample` reads of leaves of one shape.

    Args:
        leaves: How many; what is read of more than one is to be stacked along a new axis 0.
        shape: Shape of each.
        kept: Axes kept apart, by a leaf alone only.
        n: The ``n`` of :func:`sample`.
        axis_name: Mapped axes over which a tensor is spread, or None.
    """
    rest = tuple(length for axis, length in enumerate(shape) if axis not in kept)
    size = math.prod(rest)
    read = size if n is None else -(-size // sample_stride(rest, n))
    one_axis = leaves > 1 or (kept and n is not None)
    return Average((0,) if one_axis else kept, read, axis_name)


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


def piece_of(shape: tuple[int, ...], kept: tuple[int, ...]) -> tuple[int, int] | None:
    """Return the axis along which a leaf is cut and the length of its pieces, None for no cut.

    Args:
        shape: Shape of the leaf.
        kept: Axes not summed over, which are not cut.

    Example:
        >>> piece_of((4096, 1024), ()), piece_of((4096, 1024), (0,)), piece_of((512, 512), ())
        ((0, 512), (1, 128), None)
    """
    size = math.prod(shape)
    axes = [axis for axis in range(len(shape)) if axis not in kept]
    if size <= PIECE or not axes:
        return None
    # The outermost axis that is long enough, for pieces in long stretches of memory.
    axis = max(axes, key=lambda axis: min(shape[axis], -(-size // PIECE)))
    step = max(1, PIECE * shape[axis] // size)
    stretch = step * math.prod(shape[axis + 1 :])
    # Of short ones every cache line would be read once for each piece. Places are 32 bits wide.
    return (axis, step) if stretch >= SHORTEST_STRETCH and shape[axis] < 2**31 else None


def sums_of_stored(
    compute: Callable[..., jax.Array],
    sums: Callable[[jax.Array], tuple[jax.Array, ...]],
    read: Sequence[jax.Array],
    kept: tuple[int, ...],
    count: jax.Array,
) -> tuple[jax.Array, ...]:
    """Return ``sums(compute(*read))``; on a CPU, large ``compute(*read)`` is stored in between.

    XLA's CPU compiler has no loop with two results, so two sums over |g - m| would read g and m
    twice: on 20 M parameters a step took 1.91 times that of ``optax.adamw`` that way, and less than
    1.5 times with |g - m| stored first, piece by piece where a leaf can be cut (:func:`piece_of`).
    Elsewhere one fused loop computes both sums, and nothing is stored.

    Args:
        compute: From ``read`` to an array, entry by entry where there are two to read.
        sums: From that array to its sums.
        read: The arrays to start from: two of a leaf, or two of each leaf of a stack.
        kept: Axes not summed over.
        count: The step being taken, at least 1.
    """

    def fused(*read: jax.Array) -> tuple[jax.Array, ...]:
        return sums(compute(*read))

    def stored(*read: jax.Array) -> tuple[jax.Array, ...]:
        return sums(lax.optimization_barrier(compute(*read)))

    def in_pieces(*read: jax.Array, axis: int, step: int) -> tuple[jax.Array, ...]:
        length = read[0].shape[axis]
        pieces = -(-length // step)
        first = length - (pieces - 1) * step

        def add(i: Any, total: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            piece = [lax.dynamic_slice_in_dim(x, first + i * step, step, axis) for x in read]
            return jax.tree.map(jnp.add, total, stored(*piece))

        start = stored(*(lax.slice_in_dim(x, 0, first, axis=axis) for x in read))
        return lax.fori_loop(0, pieces - 1, add, start)

    size = sum(x.size for x in read)
    # A symbolic size of jax.export cannot be compared.
    if not isinstance(size, int) or size <= NOT_WORTH_STORING:
        return fused(*read)
    cut = piece_of(read[0].shape, kept)
    # A leaf that is spread over devices would be gathered to be cut.
    if len(read) == 2 and cut is not None and jax.device_count() == 1:
        branches = (partial(in_pieces, axis=cut[0], step=cut[1]),) * 2
    else:
        branches = stored, fused
    # Both branches are right, and the first is taken: what a branch stores lives inside it. Without
    # one, the compiler computes |g - m| of all leaves before it takes the first sum, and needs as
    # much memory as the parameters.
    return lax.platform_dependent(
        *read, cpu=lambda *read: lax.cond(count > 0, *branches, *read), default=fused
    )
