"""Parameters and optimizer states as sections of the manifest."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from optim_checkpoint._collect import Collector, Staging
from optim_checkpoint._errors import CorruptCheckpointError, UnsupportedStateError, shown
from optim_checkpoint._json import as_array, as_object
from optim_checkpoint._names import join
from optim_checkpoint._numpy import AnyArray, bytes_of, dtype_name
from optim_checkpoint._paths import Path, from_json, text, to_json
from optim_checkpoint._typed import Typed
from optim_checkpoint.jax._leaves import decode_leaf, encode_leaf, pending_leaf
from optim_checkpoint.jax._tree import leaves, split, structure


def encode_params(params: Any, collector: Collector) -> Typed:
    """Write a tree of parameters, one tensor per leaf under its dotted path."""
    return {
        "leaves": [
            {
                "path": to_json(path),
                "leaf": encode_leaf(leaf, text(path), f"params {text(path)}", collector),
            }
            for path, leaf in leaves(params, "params")
        ],
        "nodes": _nodes(structure(params, "params").nodes),
    }


def encode_state(state: Any, params: Any, collector: Collector) -> Typed:
    """Write an optimizer state.

    A leaf that lies at a parameter's path is stored as ``state.<param>.<slot>``, a packed entry
    too; everything else as ``global.<path>``.
    """
    known = {path for path, _ in leaves(params, "params")}
    shape = structure(state, "opt_state")
    table: list[object] = []
    for path, leaf in leaves(state, "opt_state"):
        where = f"opt_state {text(path)}"
        row: dict[str, object] = {"path": to_json(path)}
        if path in shape.packed:
            row.update(_encode_packed(leaf, path, shape.packed[path], where, collector))
        else:
            cut = split(path, known)
            if cut is None:
                key = f"global.{text(path)}"
            else:
                slot, parameter = cut
                key = f"state.{text(parameter)}.{join(c for _, c in slot)}"
                row["param"] = to_json(parameter)
            row["leaf"] = encode_leaf(leaf, key, where, collector)
        table.append(row)
    return {"kind": "optax", "leaves": table, "nodes": _nodes(shape.nodes)}


def _nodes(nodes: dict[Path, str]) -> list[object]:
    return [[to_json(path), name] for path, name in nodes.items()]


def _encode_packed(
    vector: Any, path: Path, parameters: list[Path], where: str, collector: Collector
) -> Typed:
    if not isinstance(vector, jax.Array | np.ndarray) or vector.ndim < 1:
        raise UnsupportedStateError(where, "is declared packed but is not a vector")
    slot = join(component for _, component in path)
    if len(vector) != len(parameters):
        # Statistics kept along axes have a layout that only the optimizer knows: stored whole,
        # and restored only where the parameters still come in this order.
        return {
            "leaf": encode_leaf(vector, f"global.{slot}", where, collector),
            "order": [to_json(parameter) for parameter in parameters],
        }
    if isinstance(vector, jax.Array) and not (
        vector.is_fully_addressable or vector.is_fully_replicated
    ):
        raise UnsupportedStateError(where, "is packed and spread over processes; replicate it")
    array: AnyArray = np.asarray(vector)
    name = dtype_name(array.dtype, where)
    entries: list[object] = []
    for i, parameter in enumerate(parameters):
        key = collector.add(
            f"state.{text(parameter)}.{slot}",
            name,
            array.shape[1:],
            lambda i=i: bytes_of(array[i : i + 1]),
        )
        entries.append([to_json(parameter), key])
    return {"packed": entries, "dtype": array.dtype.name, "jax": isinstance(vector, jax.Array)}


@dataclass(frozen=True)
class SavedLeaf:
    """One row of a table of leaves.

    Attributes:
        value: The decoded leaf; None for a packed field.
        order: For a packed field stored whole, its parameters in order.
        packed: For a packed field its entries, each a NumPy array, by parameter.
        dtype: For a packed field its dtype.
        is_jax: For a packed field whether it was a JAX array.
        param: The path of the parameter whose state it is.
    """

    value: Any = None
    order: tuple[Path, ...] | None = None
    packed: dict[Path, AnyArray] | None = None
    dtype: str = ""
    is_jax: bool = True
    param: Path | None = None


@dataclass(frozen=True)
class SavedTree:
    """A decoded section; its arrays are filled by the read."""

    leaves: dict[Path, SavedLeaf]
    nodes: dict[Path, str]


def decode_tree(section: object, staging: Staging) -> SavedTree:
    """Read what `encode_params` or `encode_state` wrote.

    Raises:
        CorruptCheckpointError: If the section is not of that form.
    """
    file = staging.file
    fields = as_object(section) or {}
    rows, nodes = as_array(fields.get("leaves")), as_array(fields.get("nodes"))
    if rows is None or nodes is None:
        raise CorruptCheckpointError(file, "the table of leaves is malformed")
    leaf = pending_leaf(staging)
    table: dict[Path, SavedLeaf] = {}
    for item in rows:
        row = as_object(item) or {}
        path = from_json(row.get("path"), file)
        if path in table or as_array(row.get("path")) is None:
            raise CorruptCheckpointError(file, f"the leaf {shown(text(path))} occurs twice")
        if "packed" in row:
            table[path] = _decode_packed(row, staging)
        else:
            order = as_array(row["order"]) if "order" in row else None
            table[path] = SavedLeaf(
                decode_leaf(row.get("leaf"), staging, leaf),
                None if order is None else tuple(from_json(p, file) for p in order),
                param=from_json(row["param"], file) if "param" in row else None,
            )
    return SavedTree(table, dict(_decode_nodes(nodes, file)))


def _decode_nodes(nodes: list[object], file: str) -> Iterable[tuple[Path, str]]:
    for item in nodes:
        pair = as_array(item) or []
        if len(pair) != 2 or not isinstance(pair[1], str):
            raise CorruptCheckpointError(file, f"the node {shown(item)} is malformed")
        yield from_json(pair[0], file), pair[1]


def _decode_packed(row: dict[str, object], staging: Staging) -> SavedLeaf:
    file = staging.file
    entries: dict[Path, AnyArray] = {}
    for item in as_array(row["packed"]) or []:
        pair = as_array(item) or []
        if len(pair) != 2:
            raise CorruptCheckpointError(file, f"the packed entry {shown(item)} is malformed")
        path = from_json(pair[0], file)
        if path in entries:
            raise CorruptCheckpointError(file, f"the packed entry {shown(item)} occurs twice")
        entries[path] = staging.array(pair[1])
    dtype, is_jax = row.get("dtype"), row.get("jax")
    if any(array.dtype.name != dtype for array in entries.values()) or not isinstance(is_jax, bool):
        raise CorruptCheckpointError(file, "a packed field mixes dtypes")
    return SavedLeaf(packed=entries, dtype=str(dtype), is_jax=is_jax)
