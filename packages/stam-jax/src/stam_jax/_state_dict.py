"""Optimizer state as a flat dictionary with names, and back: the stable form of a saved state.

Format 1: one entry per array, its key the path in the state and, inside ours, the path of the leaf:
``0/mu/dense/w``, ``0/s2/dense/w``, ``0/count``. Packed statistics are stored per leaf, so that
leaves which were added, removed or reordered since cannot swap them. ``format_version`` holds the
format.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stam_jax import _tree
from stam_jax._diagnostics import is_scaling_state, leaves_of
from stam_jax._tree import StatAxes

FORMAT_VERSION = 1
VERSION_KEY = "format_version"


def state_to_dict(state: Any, *, stat_axes: StatAxes | None = None) -> dict[str, np.ndarray]:
    """Return an optimizer state as named NumPy arrays, on the host.

    Args:
        state: Any optax state; those of STAM and STAMLite in it are stored leaf by leaf.
        stat_axes: The callable that the optimizer was built with, if any.

    Returns:
        Key to array, with ``format_version``. ``numpy.savez`` can write it (cast bfloat16 first).

    Raises:
        ValueError: Two leaves have the same path.

    Example:
        >>> import jax.numpy as jnp, stam_jax
        >>> state = stam_jax.stam_lite().init({"b": jnp.zeros(2), "w": jnp.zeros((2, 2))})
        >>> [key for key in stam_jax.state_to_dict(state) if key.endswith("/b")]
        ['0/mu/b', '0/e1/b', '0/e2/b', '0/beta1/b', '0/b1_prod/b', '0/s/b']
    """
    flat: dict[str, np.ndarray] = {VERSION_KEY: np.asarray(FORMAT_VERSION, np.int32)}
    for key, part in _parts(state, stat_axes):
        flat[key] = np.asarray(part)
    return flat


def state_from_dict(
    template: Any, saved: Mapping[str, Any], *, stat_axes: StatAxes | None = None
) -> Any:
    """Return a state of the template's structure with the saved values.

    Args:
        template: A state for the same parameters, as ``optimizer.init(params)`` makes it. Values
            are cast to its dtypes.
        saved: What :func:`state_to_dict` returned, in this release or an older one. Entries that
            the template does not need are passed over.
        stat_axes: The callable that the optimizer was built with, if any.

    Raises:
        ValueError: The format is unknown, an entry is missing, a shape differs, or two leaves have
            the same path.
    """
    version = int(saved.get(VERSION_KEY, -1))
    if version != FORMAT_VERSION:
        msg = (
            f"the saved state has format version {version if version >= 0 else 'none'}, and this "
            f"release reads {FORMAT_VERSION}: load it with the release that wrote it, or a newer "
            "one"
        )
        raise ValueError(msg)
    values = []
    for key, part in _parts(template, stat_axes):
        if key not in saved:
            msg = (
                f"the saved state has no entry {key!r}: it was made for other parameters or "
                "another optimizer; start that one from init, or rename the entry"
            )
            raise ValueError(msg)
        value = jnp.asarray(saved[key], dtype=part.dtype)
        if value.shape != part.shape:
            msg = (
                f"the saved entry {key!r} has shape {value.shape}, and the state needs "
                f"{part.shape}: restore it for the parameters it was made for"
            )
            raise ValueError(msg)
        values.append(value)
    return _rebuild(template, iter(values), stat_axes)


def _nodes(state: Any) -> tuple[list[tuple[str, Any]], Any]:
    """Return the state's nodes with their paths: ours whole, of the others the arrays."""
    nodes, treedef = jax.tree_util.tree_flatten_with_path(state, is_leaf=is_scaling_state)
    return [(jax.tree_util.keystr(p, simple=True, separator="/"), x) for p, x in nodes], treedef


def _parts(state: Any, stat_axes: StatAxes | None) -> list[tuple[str, Any]]:
    """Return key and array of everything in the state, packed vectors cut into leaves."""
    parts: list[tuple[str, Any]] = []
    for prefix, node in _nodes(state)[0]:
        if not is_scaling_state(node):
            parts.append((prefix, node))
            continue
        start = f"{prefix}/" if prefix else ""
        leaves_like = leaves_of(node)
        names, layout = _tree.unique_names(leaves_like), _tree.layout(leaves_like, stat_axes)
        for field in node._fields:
            value = getattr(node, field)
            if field == "count":
                parts.append((f"{start}{field}", value))
                continue
            packed = field in type(node).__packed_fields__
            leaves = layout.unpack(value) if packed else jax.tree.leaves(value)
            parts += [
                (f"{start}{field}/{name}", leaf) for name, leaf in zip(names, leaves, strict=True)
            ]
    return parts


def _rebuild(template: Any, values: Any, stat_axes: StatAxes | None) -> Any:
    """Return the template with its arrays replaced, in the order of :func:`_parts`."""
    nodes, treedef = _nodes(template)
    rebuilt = []
    for _, node in nodes:
        if not is_scaling_state(node):
            rebuilt.append(next(values))
            continue
        layout = _tree.layout(leaves_of(node), stat_axes)
        fields = {}
        for field in node._fields:
            old = getattr(node, field)
            if field == "count":
                fields[field] = next(values)
            elif field in type(node).__packed_fields__:
                fields[field] = layout.pack([next(values) for _ in layout.shapes], old.dtype)
            else:
                moments = jax.tree.structure(old)
                fields[field] = moments.unflatten([next(values) for _ in layout.shapes])
        rebuilt.append(type(node)(**fields))
    return treedef.unflatten(rebuilt)
