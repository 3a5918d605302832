"""Leaves, their names, and statistics packed in one vector per kind.

A per-tensor scalar in a tree shaped like the parameters would be given the parameters' sharding by
every tool that maps over them, and fail on its rank. So the scalars of all leaves lie in vectors,
in the order of ``jax.tree.leaves``.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax import lax

from stam_jax._dtypes import dtype_of

StatAxes: TypeAlias = Callable[[str, Any], Sequence[int]]
"""Maps a leaf's path and the leaf to the axes along which its statistics are kept apart."""


def leaf_names(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> list[str]:
    """Return the path of every leaf, its parts joined by ``/``.

    Args:
        tree: The tree.
        is_leaf: What else counts as a leaf.

    Example:
        >>> leaf_names({"dense": {"w": 1.0, "b": 2.0}})
        ['dense/b', 'dense/w']
    """
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(tree, is_leaf)[0]]
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]


def unique_names(tree: Any) -> list[str]:
    """Return the path of every leaf, for a table with one entry for each.

    Raises:
        ValueError: Two leaves have the same path, as ``{"a/b": x, "a": {"b": y}}`` has.
    """
    names = leaf_names(tree)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        msg = f"two leaves have the path {twice!r}, and a table by path holds one: rename a key"
        raise ValueError(msg)
    return names


REMEDY = "freeze it with optax.transforms.partition or optax.masked, or leave it out of the tree"


def check_floating(tree: Any, what: str) -> None:
    """Raise unless every leaf is an array of a floating or complex dtype.

    Raises:
        TypeError: A leaf is not; the message names it.
    """
    for path, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_sparse):
        fault = _fault(node)
        if fault is not None:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise TypeError(f"{what} leaf {name!r} {fault}")


def _fault(leaf: Any) -> str | None:
    """Return what keeps a leaf from being optimised, None where nothing does."""
    if _is_sparse(leaf):
        return (
            f"is a sparse {type(leaf).__name__}, whose indices cannot be optimised: pass its .data "
            "as the parameter and build the matrix from it in the loss, or a dense array"
        )
    try:
        dtype = dtype_of(leaf)
    except TypeError:
        kind = getattr(leaf, "dtype", type(leaf).__name__)
        return f"is {kind}, and only floating or complex arrays can be optimised: {REMEDY}"
    if not jnp.issubdtype(dtype, jnp.inexact):
        return (
            f"has dtype {dtype.name}, and only floating or complex leaves can be optimised: "
            f"{REMEDY}"
        )
    if "e8m0" in dtype.name:
        return (
            f"has dtype {dtype.name}, which has neither a sign nor a zero and is for scales: "
            f"{REMEDY}"
        )
    return None


def _is_sparse(node: Any) -> bool:
    # By name, because jax.experimental.sparse takes a second to import.
    return any(kind.__name__ == "JAXSparse" for kind in type(node).__mro__)


def check_sampled(tree: Any) -> None:
    """Raise if a leaf to be sampled has a symbolic dimension: its stride would depend on it.

    Raises:
        ValueError: One has; the message names it.
    """
    for name, leaf in zip(leaf_names(tree), jax.tree.leaves(tree), strict=True):
        if not all(isinstance(length, int) for length in jnp.shape(leaf)):
            msg = (
                f"leaf {name!r} has the symbolic shape {jnp.shape(leaf)}, and stat_sample needs "
                "sizes to choose a stride: leave stat_sample out, or export for fixed shapes"
            )
            raise ValueError(msg)


def flatten_like(
    treedef: Any,
    leaves: Sequence[Any],
    tree: Any,
    what: str,
    shape_of: Callable[[Any, Any], tuple[int, ...]],
) -> list[Any]:
    """Return the leaves of ``tree``, which must have the structure and the shapes of the gradients.

    Args:
        treedef: Structure of the gradients.
        leaves: Leaves of the gradients.
        tree: The other tree.
        what: Its name in messages.
        shape_of: Returns the shape that a leaf of ``tree`` must have, from that of the gradients
            and itself.

    Raises:
        ValueError: Structure or shape differ; the message names the first such leaf.
    """
    try:
        others = treedef.flatten_up_to(tree)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            _structure_message(jax.tree.unflatten(treedef, leaves), tree, what)
        ) from error
    for i, (leaf, other) in enumerate(zip(leaves, others, strict=True)):
        if not hasattr(other, "shape") and not isinstance(other, (int, float, complex)):
            raise ValueError(_structure_message(jax.tree.unflatten(treedef, leaves), tree, what))
        if shape_of(leaf, other) != jnp.shape(other):
            name = leaf_names(jax.tree.unflatten(treedef, leaves))[i]
            msg = (
                f"gradient leaf {name!r} has shape {jnp.shape(leaf)} and {what} has "
                f"{jnp.shape(other)} there: call init again for these parameters, or restore the "
                "matching state"
            )
            raise ValueError(msg)
    return others


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _structure_message(grads: Any, tree: Any, what: str) -> str:
    # What another transformation has masked here is a leaf of the whole all the same.
    mine, theirs = leaf_names(grads, _is_masked), leaf_names(tree, _is_masked)
    parts = [jax.tree.leaves(part, is_leaf=_is_masked) for part in (grads, tree)]
    missing = [name for name in mine if name not in set(theirs)]
    extra = [name for name in theirs if name not in set(mine)]
    if missing:
        detail = f"leaf {missing[0]!r} of the gradients is missing in {what}"
    elif extra:
        detail = f"leaf {extra[0]!r} of {what} is missing in the gradients"
    elif moved := [
        name
        for name, *pair in zip(mine, *parts, strict=False)
        if _is_masked(pair[0]) != _is_masked(pair[1])
    ]:
        detail = f"leaf {moved[0]!r} is in the other part of the partition there"
    else:
        detail = (
            f"the containers around leaf {mine[0]!r} differ" if mine else "the containers differ"
        )
    return (
        f"the gradients do not match {what}: {detail} ({len(mine)} leaves against {len(theirs)}); "
        "call init again for these parameters, or restore the matching state"
    )


class Layout(NamedTuple):
    """Where each leaf's statistics lie in a packed vector.

    Attributes:
        kept: Leaf by leaf, the axes along which statistics are kept apart, sorted and non-negative.
        shapes: Leaf by leaf, the shape of its statistics: 0-d, or size 1 along the axes averaged
            over.
    """

    kept: tuple[tuple[int, ...], ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def size(self) -> int:
        """The length of a packed vector."""
        return sum(math.prod(shape) for shape in self.shapes)

    def check(self, vector: jax.Array) -> jax.Array:
        """Return a packed vector, if it has the length that these leaves need.

        Raises:
            ValueError: It has another.
        """
        if vector.shape != (self.size,):
            msg = (
                f"packed statistics have shape {vector.shape}, and these {len(self.shapes)} leaves "
                f"need ({self.size},): call init again, or restore a state made for the same "
                "leaves and the same stat_axes"
            )
            raise ValueError(msg)
        return vector

    def unpack(self, vector: jax.Array) -> list[jax.Array]:
        """Cut a packed vector into one array per leaf.

        Raises:
            ValueError: The vector has another length than these leaves need.
        """
        self.check(vector)
        if not self.shapes:
            return []
        parts = lax.split(vector, [math.prod(shape) for shape in self.shapes])
        return [part.reshape(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def pack(self, parts: Sequence[jax.Array], dtype: Any) -> jax.Array:
        """Join one array per leaf into a packed vector."""
        if not parts:
            return jnp.zeros((0,), dtype)
        return lax.concatenate([part.astype(dtype).reshape(-1) for part in parts], 0)


def layout(tree: Any, stat_axes: StatAxes | None) -> Layout:
    """Return the layout of the statistics of ``tree``.

    Raises:
        ValueError: ``stat_axes`` named an axis that the leaf lacks.
    """
    leaves = jax.tree.leaves(tree)
    if stat_axes is None:
        return Layout(((),) * len(leaves), ((),) * len(leaves))
    kept, shapes = [], []
    for name, leaf in zip(leaf_names(tree), leaves, strict=True):
        shape = jnp.shape(leaf)
        axes = tuple(stat_axes(name, leaf))
        for axis in axes:
            if not -len(shape) <= axis < len(shape):
                msg = (
                    f"stat_axes returned axis {axis} for leaf {name!r}, which has {len(shape)} "
                    "dimensions: return axes the leaf has, or () for one statistic per tensor"
                )
                raise ValueError(msg)
            if not isinstance(shape[axis], int):
                msg = (
                    f"stat_axes returned axis {axis} for leaf {name!r}, whose length {shape[axis]} "
                    "is a symbol: the state needs one number for each entry, so keep other axes, "
                    "or export for fixed shapes"
                )
                raise ValueError(msg)  # noqa: TRY004 (no type is wrong, the length is)
        axes = tuple(sorted({axis % len(shape) for axis in axes}))
        kept.append(axes)
        shapes.append(tuple(n if i in axes else 1 for i, n in enumerate(shape)) if axes else ())
    return Layout(tuple(kept), tuple(shapes))
