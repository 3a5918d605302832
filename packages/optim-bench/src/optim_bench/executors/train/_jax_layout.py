"""What is trained of the parameters that a task returns, and how they come back whole.

A pytree of arrays is trained as it is. An Equinox module also holds functions and numbers, and an
NNX module its batch statistics and random states: those stay beside the optimizer, which sees a
pytree of floating-point arrays alone.
"""

import sys
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


class Layout:
    """How the parameters of a task divide; equal for those of every seed.

    Args:
        params: as the task's `init` returned them.
    """

    def __init__(self, params: Any) -> None:
        nnx = sys.modules.get("flax.nnx")
        if nnx is not None and isinstance(params, nnx.Module):
            graph, trained, rest = nnx.split(params, nnx.Param, ...)
            self.trained, self.held = _on_device(trained), _on_device(rest)
            self.merge: Callable[[Any, Any], Any] = lambda t, held: nnx.merge(graph, t, held)
            self.key: Hashable = _key(graph, self.trained, self.held)
            return
        leaves, tree = jax.tree.flatten(params)
        arrays = [isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves]
        moving = [
            array and jnp.issubdtype(leaf.dtype, jnp.inexact)
            for leaf, array in zip(leaves, arrays, strict=True)
        ]
        kept = [m or not a for m, a in zip(moving, arrays, strict=True)]
        fixed = [None if array else leaf for leaf, array in zip(leaves, arrays, strict=True)]
        self.trained = jax.tree.unflatten(
            tree,
            [jnp.asarray(leaf) if m else None for leaf, m in zip(leaves, moving, strict=True)],
        )
        self.held = [jnp.asarray(leaf) for leaf, k in zip(leaves, kept, strict=True) if not k]

        def merge(trained: Any, held: Any) -> Any:
            mine, theirs = iter(jax.tree.leaves(trained)), iter(held)
            whole = [
                next(mine) if m else constant if k else next(theirs)
                for m, k, constant in zip(moving, kept, fixed, strict=True)
            ]
            return jax.tree.unflatten(tree, whole)

        self.merge = merge
        self.key = _key(tree, *moving, *fixed)


def _on_device(tree: Any) -> Any:
    return jax.tree.map(jnp.asarray, tree)


def _key(*parts: Any) -> Hashable:
    """Return what programs of equal layouts have in common; without a hash they share none."""
    described = tuple(
        part if isinstance(part, Hashable) else jax.tree.structure(part) for part in parts
    )
    try:
        hash(described)
    except TypeError:
        return object()
    return described
