"""Pytrees as tables of paths."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import jax

from optim_checkpoint._errors import UnsupportedStateError, shown
from optim_checkpoint._paths import Path, text


def _component(entry: Any, where: str) -> tuple[str, str]:
    if isinstance(entry, jax.tree_util.DictKey):
        if type(entry.key) is str and entry.key.encode("utf-8", "ignore").decode() == entry.key:
            return "key", entry.key
        if type(entry.key) is int:
            return "int", str(entry.key)
    elif isinstance(entry, jax.tree_util.SequenceKey):
        return "idx", str(entry.idx)
    elif isinstance(entry, jax.tree_util.GetAttrKey):
        return "attr", entry.name
    elif isinstance(entry, jax.tree_util.FlattenedIndexKey) and type(entry.key) is int:
        return "flat", str(entry.key)
    raise UnsupportedStateError(
        where, f"the pytree key {shown(entry)} cannot be stored; use str (Unicode) or int keys"
    )


def path_of(entries: Iterable[Any], where: str) -> Path:
    """Return the path that JAX's key entries spell."""
    return tuple(_component(entry, where) for entry in entries)


def leaves(tree: Any, where: str) -> list[tuple[Path, Any]]:
    """Return every leaf with its path, in the order of ``jax.tree.leaves``.

    Raises:
        UnsupportedStateError: If a path cannot be stored, or is that of two leaves.
    """
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    rows = [(path_of(entries, where), leaf) for entries, leaf in flat]
    seen: set[Path] = set()
    for path, _ in rows:
        if path in seen:
            raise UnsupportedStateError(where, f"two leaves have the path {text(path)}")
        seen.add(path)
    return rows


@dataclass
class Structure:
    """What a pytree is made of beside its leaves.

    Attributes:
        nodes: Class names of its named tuples, by path, which tell states with equal
            fields apart.
        packed: For each packed field its parameters' paths, in the order of its entries.
    """

    nodes: dict[Path, str] = field(default_factory=dict)
    packed: dict[Path, list[Path]] = field(default_factory=dict)


def structure(tree: Any, where: str) -> Structure:
    """Walk a pytree node by node.

    A state that declares ``__packed_fields__`` holds vectors with one entry per parameter; the
    parameters are those of its field ``mu`` or, without one, of its largest other field.
    """
    result = Structure()
    _walk(tree, (), result, where)
    return result


def _walk(node: Any, path: Path, result: Structure, where: str) -> None:
    children = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)[0]
    if len(children) == 1 and not children[0][0]:
        return
    if isinstance(node, tuple) and hasattr(node, "_fields"):
        result.nodes[path] = type(node).__name__
    packed = getattr(type(node), "__packed_fields__", ())
    if packed:
        _record_packed(node, path, packed, result, where)
    for entries, child in children:
        _walk(child, path + path_of(entries, where), result, where)


def _record_packed(
    node: Any, path: Path, packed: Iterable[str], result: Structure, where: str
) -> None:
    names = set(packed)
    children = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)[0]
    by_name = {path_of(entries, where)[-1][1]: child for entries, child in children}
    siblings = {name: child for name, child in by_name.items() if name not in names}
    if "mu" in siblings:
        model = siblings["mu"]
    else:
        model = max(siblings.values(), key=lambda child: len(jax.tree.leaves(child)), default=())
    parameters = [leaf_path for leaf_path, _ in leaves(model, where)]
    for name in sorted(names & by_name.keys()):
        result.packed[(*path, ("attr", name))] = parameters


def split(path: Path, parameters: set[Path]) -> tuple[Path, Path] | None:
    """Cut a state path into slot and parameter, the longest parameter path that ends it.

    A parameter tree that is one bare leaf has the empty path, which ends every path: such a state
    is not told apart by path and is treated as global.
    """
    for start in range(len(path)):
        if path[start:] in parameters:
            return path[:start], path[start:]
    return None
