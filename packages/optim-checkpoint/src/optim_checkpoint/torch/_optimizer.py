"""Any `torch.optim.Optimizer`, stored and restored by parameter name with every dtype kept.

Differs from ``Optimizer.load_state_dict`` in:
1. state finds its parameter by name, whatever the order of parameters and groups is now;
2. a state tensor keeps the dtype it was saved with (torch casts it to the parameter's), and lies in
   memory as the live parameter does, as an optimizer would allocate it;
3. hyperparameters follow their parameters into groups that were split or merged;
4. everything is checked before anything changes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from optim_checkpoint._boxes import Shape
from optim_checkpoint._collect import Collector
from optim_checkpoint._errors import (
    CorruptCheckpointError,
    UnsupportedStateError,
    shown,
)
from optim_checkpoint._json import as_array, as_object
from optim_checkpoint._names import escape
from optim_checkpoint._partial import Fit, Selection
from optim_checkpoint._typed import Leaf, Typed, encode
from optim_checkpoint.torch._dtensor import is_dtensor
from optim_checkpoint.torch._hyper import STRUCTURAL, SavedGroup
from optim_checkpoint.torch._layout import order_of, row_major, state_order
from optim_checkpoint.torch._names import parameter_names
from optim_checkpoint.torch._sharding import decode_slots
from optim_checkpoint.torch._tensors import DTYPES, TorchStaging, tensor_leaf


def kind(optimizer: torch.optim.Optimizer) -> str:
    """Return the name of an optimizer's class, which is compared and never imported."""
    return f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"


def encode_optimizer(
    optimizer: torch.optim.Optimizer,
    model: torch.nn.Module | None,
    collector: Collector,
    prefix: str = "",
) -> Typed:
    """Write the state of an optimizer.

    Args:
        optimizer: The optimizer; its state dict hooks run.
        model: Where its parameters get their names from, if given.
        collector: Receives the tensors.
        prefix: What their keys start with.

    Returns:
        The section of the manifest.

    Raises:
        UnsupportedStateError: For a value that cannot be stored, with its parameter and slot.
    """
    names = parameter_names(optimizer, model)
    dumped = dump(optimizer)
    groups = dumped["param_groups"]
    if [len(group["params"]) for group in groups] != [len(group) for group in names.groups]:
        raise UnsupportedStateError(
            kind(optimizer), "its state_dict() does not list the parameters of its groups in order"
        )
    by_id: dict[Any, tuple[str, torch.Tensor]] = {}
    parameters: dict[str, list[object]] = {}
    for group, live, listed in zip(groups, optimizer.param_groups, names.groups, strict=True):
        for number, parameter, name in zip(group["params"], live["params"], listed, strict=True):
            by_id[number] = (name, parameter)
            parameters[name] = [
                DTYPES.get(parameter.dtype, str(parameter.dtype)),
                list(parameter.shape),
            ]
    state: list[object] = []
    loose: dict[object, object] = {}
    orders: dict[str, object] = {}
    for number, slots in dumped["state"].items():
        if number not in by_id:
            loose[number] = slots
            continue
        name, parameter = by_id[number]
        leaf = _state_leaf(parameter, collector, f"{prefix}state.", orders)
        state.append({"param": name, "slots": _encode_slots(slots, name, leaf)})
    known = {"state", "param_groups", *STRUCTURAL}
    rest = {key: value for key, value in dumped.items() if key not in known}
    general = tensor_leaf(collector, f"{prefix}global.")
    return {
        "kind": kind(optimizer),
        "names": "positional" if names.positional else "model",
        "params": parameters,
        "groups": [
            {
                "params": listed,
                "hyper": encode(
                    {key: value for key, value in group.items() if key not in STRUCTURAL},
                    f"group{g}",
                    general,
                ),
            }
            for g, (group, listed) in enumerate(zip(groups, names.groups, strict=True))
        ],
        "state": state,
        "orders": orders,
        "loose": encode(loose, "state", general),
        "rest": encode(rest, "rest", general),
    }


def dump(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the state dict of an optimizer.

    Raises:
        UnsupportedStateError: If it is not of the form that torch gives it.
    """
    dumped = optimizer.state_dict()
    for name in ("param_groups", "state"):
        if name not in dumped:
            raise UnsupportedStateError(
                kind(optimizer),
                f"its state_dict() has {shown(sorted(map(str, dumped)))} and no {name!r}: save the "
                "optimizer inside it, and what it keeps beside that in extra",
            )
    return dumped


def _state_leaf(
    parameter: torch.Tensor, collector: Collector, prefix: str, orders: dict[str, object]
) -> Leaf:
    """Return an `encode` hook for a parameter's state, which notes what lies in another order."""
    plain = tensor_leaf(collector, prefix)

    def leaf(value: object, path: str) -> Typed | None:
        typed = plain(value, path)
        # Processes hold shards of one tensor and must agree about what is noted of it.
        if typed is not None and isinstance(value, torch.Tensor) and not is_dtensor(value):
            expected = state_order(parameter, value.shape)
            if expected is None and value.is_contiguous():
                return typed
            order = order_of(value)
            if order != (row_major(value.shape) if expected is None else expected):
                orders[str(typed["tensor"])] = list(order)
        return typed

    return leaf


def _encode_slots(slots: Any, name: str, leaf: Leaf) -> Typed:
    if not isinstance(slots, dict):
        return encode(slots, name, leaf)
    pairs: list[object] = []
    for slot, value in slots.items():
        path = f"{name}.{escape(str(slot))}"
        pairs.append([encode(slot, path), encode(value, path, leaf, 1)])
    return {"dict": pairs}


@dataclass(frozen=True)
class SavedOptimizer:
    """The optimizer section of a checkpoint under live names; tensors are filled by the read."""

    kind: str
    params: Mapping[str, tuple[str, tuple[int, ...]]]
    groups: tuple[SavedGroup, ...]
    state: dict[str, Any]
    loose: Mapping[Any, Any]
    rest: Mapping[Any, Any]
    fit: Fit = field(default_factory=Fit)


def decode_optimizer(
    section: object,
    staging: TorchStaging,
    live: Mapping[str, torch.Tensor],
    sharded: Mapping[str, Shape],
    selection: Selection,
    state_of: Mapping[Any, Any],
) -> SavedOptimizer:
    """Read what `encode_optimizer` wrote.

    Args:
        section: The section of the manifest.
        staging: The optimizer part.
        live: The parameters to restore for; the state of a DTensor is read shard by shard.
        sharded: Which stored tensors were DTensors.
        selection: Whose state to load.
        state_of: The live state by parameter, which a restore without staging reads into.

    Raises:
        CorruptCheckpointError: If the section is not of that form.
    """
    file = staging.staging.file
    fields = as_object(section) or {}
    params = as_object(fields.get("params"))
    groups, state = as_array(fields.get("groups")), as_array(fields.get("state"))
    orders = as_object(fields.get("orders", {}))
    name = fields.get("kind")
    loose, rest = (staging.decode(fields.get(key, {"dict": []})) for key in ("loose", "rest"))
    if (
        params is None
        or groups is None
        or state is None
        or orders is None
        or not isinstance(name, str)
        or not isinstance(loose, dict)
        or not isinstance(rest, dict)
    ):
        raise CorruptCheckpointError(file, "the optimizer section is malformed")
    shapes = {key: _shape(value, file) for key, value in params.items()}
    fit = selection.fit("optimizer parameter", shapes, live)
    new = {key: selection.name_of(key) for key in shapes}
    if selection.partial:
        new = {old: name for name, old in fit.there.items()}
    per_param: dict[str, Any] = {}
    seen: set[str] = set()
    for item in state:
        entry = as_object(item) or {}
        owner = entry.get("param")
        if not isinstance(owner, str) or owner not in shapes or owner in seen:
            raise CorruptCheckpointError(file, f"state of the unknown parameter {shown(owner)}")
        seen.add(owner)
        if owner in new:
            parameter = live.get(new[owner])
            here = {} if parameter is None else state_of.get(parameter, {})
            there = here if isinstance(here, Mapping) else {}
            slots = decode_slots(entry.get("slots"), parameter, staging, sharded, orders, there)
            per_param[new[owner]] = slots
    decoded = tuple(_group(item, staging) for item in groups)
    owners = [param for group in decoded for param in group.params]
    if sorted(owners) != sorted(shapes):
        raise CorruptCheckpointError(file, "groups and parameters do not agree")
    renamed = tuple(
        replace(
            group,
            params=tuple(new[param] for param in group.params if param in new),
            emptied=bool(group.params) and not any(param in new for param in group.params),
        )
        for group in decoded
    )
    there = {new[key]: value for key, value in shapes.items() if key in new}
    return SavedOptimizer(name, there, renamed, per_param, loose, rest, fit)


def _shape(value: object, file: str) -> tuple[str, tuple[int, ...]]:
    pair = as_array(value) or []
    dims = as_array(pair[1]) if len(pair) == 2 else None
    if dims is None or not isinstance(pair[0], str) or any(type(dim) is not int for dim in dims):
        raise CorruptCheckpointError(file, f"{shown(value)} is not a dtype and a shape")
    # any() above looked at the type of each, which pyright cannot follow.
    return pair[0], tuple(dims)  # pyright: ignore[reportReturnType]


def _group(value: object, staging: TorchStaging) -> SavedGroup:
    file = staging.staging.file
    fields = as_object(value) or {}
    params = as_array(fields.get("params"))
    typed = as_object(fields.get("hyper")) or {}
    hyper = staging.decode(typed)
    if params is None or not all(isinstance(p, str) for p in params) or not isinstance(hyper, dict):
        raise CorruptCheckpointError(file, f"the group {shown(value)} is malformed")
    for key, number in hyper.items():
        if not isinstance(key, str) or key in STRUCTURAL:
            raise CorruptCheckpointError(
                file, f"the hyperparameter {shown(key)} is {shown(number)}"
            )
    pairs = as_array(typed.get("dict")) or []
    spelled = {key: repr(pair) for key, pair in zip(hyper, pairs, strict=True)}
    return SavedGroup(tuple(str(p) for p in params), hyper, spelled)


def live_parameters(
    optimizer: torch.optim.Optimizer, names: list[list[str]]
) -> dict[str, torch.Tensor]:
    """Return the parameters of an optimizer by name."""
    return {
        name: parameter
        for group, listed in zip(optimizer.param_groups, names, strict=True)
        for name, parameter in zip(listed, group["params"], strict=True)
    }
