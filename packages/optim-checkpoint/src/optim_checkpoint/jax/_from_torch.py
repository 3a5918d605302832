"""Reading a torch checkpoint into JAX templates, by name."""

import math
from typing import Any

import numpy as np

from optim_checkpoint._collect import Staging
from optim_checkpoint._convert import COUNTERS, MAX_STEP, row_of
from optim_checkpoint._errors import (
    CorruptCheckpointError,
    IncompatibleCheckpointError,
    shown,
)
from optim_checkpoint._json import as_array, as_object
from optim_checkpoint._numpy import AnyArray
from optim_checkpoint._paths import Path, text
from optim_checkpoint._typed import decode
from optim_checkpoint.jax._leaves import Pending
from optim_checkpoint.jax._sections import SavedLeaf, SavedTree
from optim_checkpoint.jax._tree import leaves, structure


class PendingCount(Pending):
    """An int32 count of steps made of the steps that torch keeps per parameter."""

    def __init__(self, steps: list[AnyArray | float], where: str) -> None:
        super().__init__(np.zeros((), np.int32))
        self._steps = steps
        self._where = where

    def value(self, template: Any = None) -> Any:
        """Return the count, now that the steps are read."""
        counts = {float(np.asarray(step)) for step in self._steps}
        if len(counts) != 1 or not all(c.is_integer() and 0 <= c < MAX_STEP for c in counts):
            found = shown(sorted(counts)[:5])
            difference = f"{self._where} is one count of at most 2**24, the checkpoint has {found}"
            raise IncompatibleCheckpointError([difference])
        self.array = np.array(counts.pop(), np.int32)
        return super().value(template)


def params_tree(
    section: object, template: Any, staging: Staging, differences: list[str]
) -> SavedTree:
    """Present the model section of a torch checkpoint as a tree with the template's paths."""
    keys: dict[str, object] = {}
    for item in as_array(section) or []:
        pair = as_array(item) or []
        value = as_object(pair[1]) if len(pair) == 2 else None
        if value is None or not isinstance(pair[0], str):
            raise CorruptCheckpointError(staging.file, f"{shown(item)} is not a model entry")
        keys[pair[0]] = value.get("tensor")
    table: dict[Path, SavedLeaf] = {}
    for path, _ in leaves(template, "params"):
        key = keys.pop(text(path), None)
        if key is not None:
            table[path] = SavedLeaf(Pending(staging.array(key)))
    differences += [f"params has no leaf {name}, the checkpoint has" for name in sorted(keys)]
    return SavedTree(table, {})


def state_tree(
    section: object, template: Any, step: int, staging: Staging, differences: list[str]
) -> SavedTree:
    """Present the optimizer section of a torch checkpoint as an optax state.

    Args:
        section: The section.
        template: The optax state to fill.
        step: The checkpoint's step, for counts that torch does not keep.
        staging: The optimizer part.
        differences: Receives what has no counterpart.
    """
    fields = as_object(section) or {}
    kind = str(fields.get("kind"))
    state = _slots(fields, staging)
    unused = {
        (param, slot)
        for param, slots in state.items()
        for slot, value in slots.items()
        if slot != "step" or value is None
    }
    shape = structure(template, "opt_state")
    nodes = shape.nodes
    table: dict[Path, SavedLeaf] = {}
    members: dict[Path, list[str]] = {}
    rows = leaves(template, "opt_state")
    for path, leaf in rows:
        cut = _owner(path, nodes)
        row = None if cut is None else row_of(nodes[cut], kind)
        if cut is None or row is None:
            continue
        field, param = path[len(cut)][1], text(path[len(cut) + 1 :])
        if field in row.packed and path in shape.packed:
            found = {
                parameter: (text(parameter), state[text(parameter)][field])
                for parameter in shape.packed[path]
                if isinstance(state.get(text(parameter), {}).get(field), str)
            }
            unused -= {(name, field) for name, _ in found.values()}
            table[path] = _packed({p: staging.array(key) for p, (_, key) in found.items()})
            continue
        slot = row.slots.get(field) or row.scales.get(field)
        if slot is None:
            continue
        members.setdefault(cut, []).append(param)
        key = state.get(param, {}).get(slot)
        if isinstance(key, str):
            unused.discard((param, slot))
            array = staging.array(key)
            # Of two dimensions in torch: scales, and the codes of four bits.
            fits = array.shape[:1] == leaf.shape[:1] and array.size == math.prod(leaf.shape)
            fits = fits and (field in row.scales or leaf.dtype == np.uint8)
            table[path] = SavedLeaf(Pending(array.reshape(leaf.shape) if fits else array))
        elif field in row.scales and 0 in leaf.shape:
            table[path] = SavedLeaf(Pending(np.zeros(leaf.shape, leaf.dtype)))
    for path, _ in rows:
        cut = _owner(path, nodes)
        if path in table or cut is None or path[len(cut)][1] != "count":
            continue
        row = row_of(nodes[cut], kind)
        if row is None and nodes[cut] not in COUNTERS:
            continue
        counted: list[Any] = []
        # Where none of its own parameters counts, any will do.
        for owners in (members.get(cut, []) if row is not None else [], list(state)):
            own = [state.get(name, {}).get("step") for name in owners]
            counted = counted or [each for each in own if each is not None]
        steps = [staging.array(value) if isinstance(value, str) else value for value in counted]
        table[path] = SavedLeaf(PendingCount(steps or [step], f"opt_state {text(path)}"))
    differences += [
        f"{slot} of {param} in {kind} has no counterpart in opt_state"
        for param, slot in sorted(unused)
    ]
    return SavedTree(table, {})


def _packed(entries: dict[Path, AnyArray]) -> SavedLeaf:
    """Present a number per parameter as a packed field; where one is complex, all are."""
    dtype = np.result_type(*entries.values()) if entries else np.dtype(np.float32)
    return SavedLeaf(packed=entries, dtype=dtype.name)


def _owner(path: Path, nodes: dict[Path, str]) -> Path | None:
    for end in range(len(path) - 1, -1, -1):
        if path[:end] in nodes:
            return path[:end]
    return None


def _slots(fields: dict[str, object], staging: Staging) -> dict[str, dict[str, Any]]:
    """Return keys of tensors and plain values by parameter and slot; None for containers."""
    result: dict[str, dict[str, Any]] = {}
    for item in as_array(fields.get("state")) or []:
        entry = as_object(item) or {}
        pairs = as_array((as_object(entry.get("slots")) or {}).get("dict"))
        if pairs is None:
            raise CorruptCheckpointError(staging.file, f"{shown(item)} is not a parameter's state")
        slots: dict[str, Any] = {}
        for pair in pairs:
            both = as_array(pair) or [None, None]
            name, value = as_object(both[0]) or {}, as_object(both[1]) or {}
            if "tensor" in value:
                slots[str(name.get("str"))] = value["tensor"]
            elif value.keys() & {"int", "float"}:
                slots[str(name.get("str"))] = decode(value, staging.file)
            elif value.get("none") != 1:
                slots[str(name.get("str"))] = None
        result[str(entry.get("param"))] = slots
    return result
