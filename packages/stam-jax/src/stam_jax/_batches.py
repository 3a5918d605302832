"""Which leaves' statistics are computed together, so that a step compiles and runs fast.

The scalars of a leaf take a chain of operations on single numbers, each a kernel of the compiled
step: with 200 small leaves that is more than the arithmetic on the leaves themselves. The scalars
of small leaves of one type therefore advance as one vector, and the leaves are reduced as one
stacked array. Large leaves stay alone: their own work outweighs that, and what shares a batch waits
for the gradients of the whole batch, so that a backward pass would have to keep large ones alive
for longer.

Leaves are stacked only where that cannot move them. Under ``jax.jit`` on a mesh with automatic axes
the compiler chooses the shardings of what is computed, and gives a stack that of one of its leaves:
a replicated scale would come back spread like the bias of its shape. There each is reduced alone.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType

from stam_jax._tree import Layout

# Stacking copies: at most 64 KiB of float32 from a leaf, and 4 MiB for a batch.
SMALL_LEAF = 2**14
LARGEST_BATCH = 2**20


class Batch(NamedTuple):
    """Leaves whose statistics are computed together.

    Attributes:
        leaves: Their positions in the tree.
        places: Their entries of a packed vector, an integer array.
        kept: The axes that they keep apart.
        shape: Shape of the statistics of each.
        stacked: Whether they may be reduced as one array.
    """

    leaves: tuple[int, ...]
    places: np.ndarray
    kept: tuple[int, ...]
    shape: tuple[int, ...]
    stacked: bool

    def starts(self) -> list[int]:
        """Return where the statistics of each leaf begin in a vector of the batch."""
        return [math.prod(self.shape) * k for k in range(len(self.leaves))]


def batches(read: Sequence[Sequence[jax.Array]], layout: Layout) -> list[Batch]:
    """Return the batches, every leaf in exactly one.

    Args:
        read: Leaf by leaf, its gradient and the arrays that its arithmetic reads with it.
        layout: Where their statistics lie.

    Example:
        >>> import jax.numpy as jnp
        >>> leaves = [jnp.ones(n) for n in (3, 5, 3, 20000)]
        >>> scalars = Layout(kept=((),) * 4, shapes=((),) * 4)
        >>> [batch.leaves for batch in batches([(leaf,) for leaf in leaves], scalars)]
        [(0, 2), (1,), (3,)]
    """
    groups: list[list[int]] = []
    unfilled: dict[Any, list[int]] = {}
    for i, (arrays, kept) in enumerate(zip(read, layout.kept, strict=True)):
        size = math.prod(arrays[0].shape)
        # A size that is a symbol of jax.export cannot be compared.
        if kept or not isinstance(size, int) or size > SMALL_LEAF:
            groups.append([i])
            continue
        # The whole type: shapes, dtypes, and the sharding where that is part of the type.
        kind = tuple(jax.typeof(array) for array in arrays)
        group = unfilled.get(kind)
        if group is None or (len(group) + 1) * size > LARGEST_BATCH:
            group = unfilled[kind] = []
            groups.append(group)
        group.append(i)
    sizes = [math.prod(shape) for shape in layout.shapes]
    first = np.cumsum([0, *sizes])
    return [
        Batch(
            tuple(group),
            np.concatenate([np.arange(first[i], first[i + 1]) for i in group]),
            layout.kept[group[0]],
            layout.shapes[group[0]],
            stays_in_place(read[group[0]][0]),
        )
        for group in groups
    ]


def alone(leaf: int) -> Batch:
    """Return the batch of one leaf that has no statistics."""
    return Batch((leaf,), np.empty(0, np.int64), (), (), stacked=True)


def stays_in_place(leaf: jax.Array) -> bool:
    """Tell whether leaves of the type of ``leaf`` keep their shardings when they are stacked."""
    if jax.device_count() == 1:
        return True
    # With explicit axes, equal types are equal shardings; in ``jax.shard_map`` all is local.
    kinds = jax.typeof(leaf).sharding.mesh.axis_types
    return bool(kinds) and AxisType.Auto not in kinds


def stack(arrays: Sequence[jax.Array]) -> jax.Array:
    """Stack the arrays of a batch; a leaf alone stays as it is."""
    return arrays[0] if len(arrays) == 1 else jnp.stack(arrays)


def reduced(
    columns: tuple[tuple[jax.Array, ...], ...], stacked: bool
) -> list[tuple[tuple[jax.Array, ...], ...]]:
    """Return the columns of a batch in parts that are reduced together: all of it, or each leaf.

    Example:
        >>> reduced(((1, 2), (3, 4)), True), reduced(((1, 2), (3, 4)), False)
        ([((1, 2), (3, 4))], [((1,), (3,)), ((2,), (4,))])
    """
    if stacked:
        return [columns]
    return [tuple((x,) for x in leaf) for leaf in zip(*columns, strict=True)]


def gather(vector: jax.Array, batch: Batch) -> jax.Array:
    """Return a batch's entries of a packed vector."""
    return _take(vector, batch.places)


def scatter(parts: Sequence[jax.Array], found: Sequence[Batch], like: jax.Array) -> jax.Array:
    """Return the packed vector made of one vector per batch, in the dtype of ``like``."""
    if not parts:
        return like
    joined = lax.concatenate([part.astype(like.dtype) for part in parts], 0)
    places = np.argsort(np.concatenate([batch.places for batch in found]))
    if any(batch.kept and not batch.stacked for batch in found):
        # Even in order: what is read through hidden places takes no sharding from a spread axis.
        return _read(joined, places)
    return _take(joined, places)


def cut(vector: jax.Array, start: jax.typing.ArrayLike, shape: tuple[int, ...]) -> jax.Array:
    """Return the statistics of one leaf of a batch, in the given shape."""
    size = math.prod(shape)
    if size != vector.size:
        vector = lax.dynamic_slice(vector, (_hidden(start),), (size,))
    return vector.reshape(shape)


def _take(vector: jax.Array, places: np.ndarray) -> jax.Array:
    if np.array_equal(places, np.arange(vector.size)):
        return vector
    return _read(vector, places)


def _read(vector: jax.Array, places: np.ndarray) -> jax.Array:
    # A state that came from the host is NumPy's.
    on_device = jnp.asarray(vector)
    return on_device.at[_hidden(places)].get(mode="promise_in_bounds", unique_indices=True)


def _hidden(places: Any) -> jax.Array:
    # XLA compiles kernels that are equal once. A place that it knew would become part of the
    # kernel, and the kernels of 200 equal leaves would be 200 different ones, each compiled for 13
    # milliseconds: ten times the compile time.
    return lax.optimization_barrier(jnp.asarray(places, jnp.uint32))
