"""Shardings of the optimizer's state from the shardings of the parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec


def state_shardings(
    params_shardings: Any,
    params: Any,
    optimizer: optax.GradientTransformation,
    *,
    zero1_axis: str | None = None,
) -> Any:
    """Return the sharding of every array in an optimizer's state.

    Buffers shaped like parameters take the parameter's sharding, and those that have only its rows,
    as the scales of 8-bit moments, that of its first dimension; counts and packed statistics are
    replicated. A state made by ``jax.jit(optimizer.init)(params)`` needs this as ``out_shardings``:
    its zeros do not depend on the parameters' values, so the compiler would leave them unsharded.

    Args:
        params_shardings: A tree of ``NamedSharding``, shaped like ``params``.
        params: The parameters, or their shapes and dtypes.
        optimizer: Any optax transformation.
        zero1_axis: A mesh axis to spread the buffers over as well (ZeRO-1): each takes it on its
            first dimension that is divisible by the axis and not sharded yet; a buffer without such
            a dimension keeps the parameter's sharding.

    Returns:
        A tree of ``NamedSharding``, shaped like the state.

    Raises:
        TypeError: A sharding is not a ``NamedSharding``.
        ValueError: There are no parameters, or the mesh lacks the axis.

    Example:
        >>> import jax, jax.numpy as jnp, stam_jax
        >>> from jax.sharding import NamedSharding, PartitionSpec
        >>> mesh = jax.make_mesh((1,), ("data",))
        >>> params = {"w": jnp.zeros((4, 2))}
        >>> shardings = {"w": NamedSharding(mesh, PartitionSpec(None, None))}
        >>> optimizer = stam_jax.stam()
        >>> tree = stam_jax.state_shardings(shardings, params, optimizer, zero1_axis="data")
        >>> tuple(tree[0].mu["w"].spec), tuple(tree[0].beta1.spec)
        (('data', None), ())
        >>> state = jax.jit(optimizer.init, out_shardings=tree)(params)
    """
    leaves = jax.tree.leaves(
        params_shardings, is_leaf=lambda x: isinstance(x, jax.sharding.Sharding)
    )
    for leaf in leaves:
        if not isinstance(leaf, NamedSharding):
            msg = (
                f"params_shardings must hold NamedSharding, got {leaf!r}: for example "
                "jax.tree.map(lambda p: p.sharding, params) of parameters placed on a mesh"
            )
            raise TypeError(msg)
    if not leaves:
        msg = "params_shardings is empty: the state of no parameters needs no shardings"
        raise ValueError(msg)
    mesh = leaves[0].mesh
    if zero1_axis is not None and zero1_axis not in mesh.shape:
        msg = f"zero1_axis {zero1_axis!r} is not an axis of the mesh: it has {tuple(mesh.shape)}"
        raise ValueError(msg)

    def like_parameter(buffer: Any, sharding: NamedSharding, param: Any) -> Any:
        if _is_masked(buffer):
            return buffer
        spec = sharding.spec
        if buffer.shape != jnp.shape(param):
            spec = _rows_only(spec, buffer.shape, jnp.shape(param))
        if zero1_axis is not None:
            spec = _spread(spec, buffer.shape, mesh, zero1_axis)
        return NamedSharding(sharding.mesh, spec)

    replicated = NamedSharding(mesh, PartitionSpec())
    return optax.tree_utils.tree_map_params(
        optimizer,
        like_parameter,
        jax.eval_shape(optimizer.init, params),
        params_shardings,
        params,
        transform_non_params=lambda _: replicated,
        is_leaf=_is_masked,
    )


def _is_masked(x: Any) -> bool:
    """Tell whether ``x`` stands for a leaf that this part of the optimizer does not see."""
    return isinstance(x, optax.MaskedNode)


def _rows_only(spec: Any, shape: tuple[int, ...], param: tuple[int, ...]) -> PartitionSpec:
    """Keep of a parameter's ``spec`` what a buffer with its rows, but another shape, can have."""
    has_rows = spec and shape and param and shape[0] == param[0]
    return PartitionSpec(spec[0]) if has_rows else PartitionSpec()


def _spread(spec: Any, shape: tuple[int, ...], mesh: Any, axis: str) -> PartitionSpec:
    """Add ``axis`` to the first dimension of ``spec`` that is free and divisible."""
    parts = [*spec, *[None] * (len(shape) - len(spec))]
    used = {name for part in parts for name in (part if isinstance(part, tuple) else (part,))}
    size = mesh.shape[axis]
    if axis in used:
        return spec
    for i, (part, length) in enumerate(zip(parts, shape, strict=True)):
        if part is None and length and length % size == 0:
            return PartitionSpec(*parts[:i], axis, *parts[i + 1 :])
    return spec
