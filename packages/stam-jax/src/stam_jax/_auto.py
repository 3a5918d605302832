"""Statistics on a mesh with explicit axes: their shardings are left to the compiler.

Where shardings are part of the types, JAX wants one named for each result that it cannot tell, of a
strided sample as of a select between a replicated number and one of a sharded layer. All that
leaves the computation of statistics are short vectors, and those are replicated.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec


def with_auto_axes(compute: Callable[..., Any]) -> Callable[..., Any]:
    """Let a function of arrays and a last constant compute as on a mesh with automatic axes.

    Its results are replicated.
    """

    @functools.wraps(compute)
    def computed(*args: Any) -> Any:
        *arrays, constant = args
        mesh = _explicit_mesh(arrays)
        if mesh is None:
            return compute(*args)
        body = jax.sharding.auto_axes(
            lambda *arrays: compute(*arrays, constant), out_sharding=PartitionSpec()
        )
        # The mesh is known from the types where the caller has not set it.
        with jax.sharding.use_abstract_mesh(mesh):
            return body(*arrays)

    return computed


def _explicit_mesh(arrays: Any) -> Any:
    """Return the first mesh with explicit axes that an array lies on, None if there is none."""
    if not hasattr(jax.sharding, "auto_axes"):  # Explicit axes came after the oldest JAX.
        return None
    for array in jax.tree.leaves(arrays):
        mesh = jax.typeof(array).sharding.mesh
        if jax.sharding.AxisType.Explicit in mesh.axis_types:
            return mesh
    return None
