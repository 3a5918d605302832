"""Reading a JAX checkpoint into live torch objects, by name."""

from typing import Any

import torch

from optim_checkpoint._convert import (
    BY_NODE,
    COUNTERS,
    MAX_STEP,
    counts_steps,
    is_packed,
    is_stateless,
    row_of,
)
from optim_checkpoint._errors import (
    CorruptCheckpointError,
    IncompatibleCheckpointError,
    shown,
)
from optim_checkpoint._json import as_array, as_object
from optim_checkpoint._paths import Path, from_json, text
from optim_checkpoint.torch._hyper import SavedGroup
from optim_checkpoint.torch._layout import state_order
from optim_checkpoint.torch._optimizer import SavedOptimizer, kind, live_parameters
from optim_checkpoint.torch._tensors import DTYPES, TorchStaging


def model_entries(section: object, staging: TorchStaging) -> list[object]:
    """Present a table of JAX parameters as the model section of a torch checkpoint."""
    entries: list[object] = []
    for path, leaf in _leaves(section, staging).items():
        entries.append([text(path), {"tensor": _array_key(leaf, text(path), staging)}])
    return entries


def _leaves(section: object, staging: TorchStaging) -> dict[Path, dict[str, object]]:
    file = staging.staging.file
    rows = as_array((as_object(section) or {}).get("leaves"))
    if rows is None:
        raise CorruptCheckpointError(file, "the table of leaves is malformed")
    table: dict[Path, dict[str, object]] = {}
    for item in rows:
        row = as_object(item) or {}
        table[from_json(row.get("path"), file)] = as_object(row.get("leaf")) or {
            "packed": row.get("packed")
        }
    return table


def _array_key(leaf: dict[str, object], where: str, staging: TorchStaging) -> object:
    for tag in ("array", "weak", "ndarray"):
        if tag in leaf:
            staging.staging.info(leaf[tag])
            return leaf[tag]
    raise IncompatibleCheckpointError([f"{where} is no array, torch has no place for it"])


def _nodes(section: object, file: str) -> dict[Path, str]:
    nodes: dict[Path, str] = {}
    for item in as_array((as_object(section) or {}).get("nodes")) or []:
        pair = as_array(item) or [None, None]
        nodes[from_json(pair[0], file)] = str(pair[1])
    return nodes


def convert_optimizer(
    section: object,
    optimizer: torch.optim.Optimizer,
    names: list[list[str]],
    staging: TorchStaging,
    differences: list[str],
) -> tuple[SavedOptimizer, list[tuple[dict[str, Any], torch.Tensor]]]:
    """Present an optax state as the state of a torch optimizer.

    The hyperparameters stay those of the live optimizer: optax does not store them.

    Returns:
        The state, and for each parameter with steps its slots and the count they come from, which
        `settle_steps` puts in once it is read.
    """
    file = staging.staging.file
    table, nodes = _leaves(section, staging), _nodes(section, file)
    live_kind, live = kind(optimizer), live_parameters(optimizer, names)
    groups_of = {
        name: group
        for group, listed in zip(optimizer.param_groups, names, strict=True)
        for name in listed
    }
    shapes = {name: (DTYPES.get(p.dtype, str(p.dtype)), tuple(p.shape)) for name, p in live.items()}
    state: dict[str, Any] = {}
    counted: dict[str, Path] = {}
    for path, leaf in table.items():
        cut = next((path[:i] for i in range(len(path) - 1, -1, -1) if path[:i] in nodes), None)
        row = None if cut is None else row_of(nodes[cut], live_kind)
        field = "" if cut is None else path[len(cut)][1]
        name = "" if cut is None else text(path[len(cut) + 1 :])
        if cut is not None and row is not None and field in row.slots:
            key = _array_key(leaf, text(path), staging)
            info = staging.staging.info(key)
            whole = shapes[name][1] if name in shapes else info.shape
            packed = is_packed(info.dtype, info.shape, whole)
            order = None if packed else state_order(live.get(name), info.shape)
            tensor = staging.tensor(key, order)
            # Codes of four bits, in torch of two dimensions as their scales.
            tensor = tensor.reshape(tensor.shape[0], -1) if packed else tensor
            state.setdefault(name, {})[row.slots[field]] = tensor
            if not packed and tuple(tensor.shape) != tuple(whole):
                differences.append(
                    f"{row.slots[field]} of {name} has shape {list(tensor.shape)} in the "
                    f"checkpoint, its parameter {list(shapes[name][1])}"
                )
            if row.count is not None and (packed or counts_steps(groups_of.get(name, {}), row)):
                counted[name] = (*cut, ("attr", row.count))
        elif cut is not None and row is not None and field in row.scales:
            tensor = staging.tensor(_array_key(leaf, text(path), staging))
            if tensor.numel():
                flat = tensor.reshape(tensor.shape[0], -1)
                state.setdefault(name, {})[row.scales[field]] = flat
        elif row is not None and field in row.packed and isinstance(leaf.get("packed"), list):
            for item in as_array(leaf["packed"]) or []:
                pair = as_array(item) or [None, None]
                slots = state.setdefault(text(from_json(pair[0], file)), {})
                slots[field] = staging.tensor(pair[1])
        elif cut is None or field != "count" or nodes[cut] not in {*BY_NODE, *COUNTERS}:
            differences.append(f"opt_state {text(path)} has no counterpart in {live_kind}")
    differences += [
        f"the optimizer has no parameter {name}, the checkpoint has"
        for name in state
        if name not in shapes
    ]
    for group, listed in zip(optimizer.param_groups, names, strict=True):
        if not is_stateless(group):
            differences += [
                f"the checkpoint has no optimizer state for {name}"
                for name in listed
                if name not in state
            ]
        if group.get("amsgrad") and any(
            "max_exp_avg_sq" not in state[name]
            for name in listed
            if "exp_avg_sq" in state.get(name, {})
        ):
            differences.append(f"{live_kind} uses amsgrad, the checkpoint has no maxima for it")
    steps: list[tuple[dict[str, Any], torch.Tensor]] = []
    for name, path in counted.items():
        if path not in table:
            raise CorruptCheckpointError(file, f"there is no {shown(text(path))}")
        count = staging.tensor(_array_key(table[path], text(path), staging))
        note = f"opt_state {text(path)} has shape {list(count.shape)}, torch needs one number"
        if count.ndim and note not in differences:
            differences.append(note)
        steps.append((state[name], count))
    groups = tuple(SavedGroup(tuple(group), {}, {}) for group in names)
    return SavedOptimizer(live_kind, shapes, groups, state, {}, {}), steps


def settle_steps(steps: list[tuple[dict[str, Any], torch.Tensor]]) -> None:
    """Put the steps in, as torch keeps them: a float32 tensor of their own per parameter."""
    for slots, count in steps:
        number = int(count.item())
        if not 0 <= number < MAX_STEP:
            raise IncompatibleCheckpointError(
                [f"{number} steps were taken, torch counts exactly only below 2**24"]
            )
        slots["step"] = torch.tensor(float(number), dtype=torch.float32, device="cpu")
        for name, value in slots.items():
            # Where one parameter is complex, the packed vector is so for all.
            if value.is_complex() and not slots["exp_avg"].is_complex():
                slots[name] = value.real.clone()
