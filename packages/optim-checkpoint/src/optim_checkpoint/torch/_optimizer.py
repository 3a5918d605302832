"""Any `torch.optim.Optimizer`, stored and restored by parameter name with every dtype kept.

Differs from ``Optimizer.load_state_dict`` in:
1. state finds its parameter by name, whatever the order of parameters and groups is now;
2. a state tensor keeps the dtype it was saved with (torch casts it to the parameter's);
3. hyperparameters follow their parameters into groups that were split or merged;
4. everything is checked before anything changes.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
from optim_checkpoint._typed import Typed, encode
from optim_checkpoint.torch._names import live_differences, parameter_names
from optim_checkpoint.torch._sharding import decode_slots
from optim_checkpoint.torch._tensors import DTYPES, TorchStaging, tensor_leaf

# Keys that schedulers add to a group; a checkpoint may have them before the scheduler exists.
_SCHEDULER_KEYS = {
    "initial_lr",
    "max_lr",
    "min_lr",
    "base_momentum",
    "max_momentum",
    "swa_lr",
}
_STRUCTURAL = {"params", "param_names"}


def kind(optimizer: torch.optim.Optimizer) -> str:
    """Return the name of an optimizer's class, which is compared and never imported."""
    return f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"


def encode_optimizer(
    optimizer: torch.optim.Optimizer, model: torch.nn.Module | None, collector: Collector
) -> Typed:
    """Write the state of an optimizer.

    Args:
        optimizer: The optimizer; its state dict hooks run.
        model: Where its parameters get their names from, if given.
        collector: Receives the tensors.

    Returns:
        The section of the manifest.

    Raises:
        UnsupportedStateError: For a value that cannot be stored, with its parameter and slot.
    """
    names = parameter_names(optimizer, model)
    dumped = optimizer.state_dict()
    groups = dumped["param_groups"]
    if [len(group["params"]) for group in groups] != [len(group) for group in names.groups]:
        raise UnsupportedStateError(
            kind(optimizer), "its state_dict() does not list the parameters of its groups in order"
        )
    by_id: dict[Any, str] = {}
    parameters: dict[str, list[object]] = {}
    for group, live, listed in zip(groups, optimizer.param_groups, names.groups, strict=True):
        for number, parameter, name in zip(group["params"], live["params"], listed, strict=True):
            by_id[number] = name
            parameters[name] = [
                DTYPES.get(parameter.dtype, str(parameter.dtype)),
                list(parameter.shape),
            ]
    state: list[object] = []
    loose: dict[object, object] = {}
    for number, slots in dumped["state"].items():
        if number not in by_id:
            loose[number] = slots
            continue
        name = by_id[number]
        state.append({"param": name, "slots": _encode_slots(slots, name, collector)})
    known = {"state", "param_groups", *_STRUCTURAL}
    rest = {key: value for key, value in dumped.items() if key not in known}
    general = tensor_leaf(collector, "global.")
    return {
        "kind": kind(optimizer),
        "names": "positional" if names.positional else "model",
        "params": parameters,
        "groups": [
            {
                "params": listed,
                "hyper": encode(
                    {key: value for key, value in group.items() if key not in _STRUCTURAL},
                    f"group{g}",
                    general,
                ),
            }
            for g, (group, listed) in enumerate(zip(groups, names.groups, strict=True))
        ],
        "state": state,
        "loose": encode(loose, "state", general),
        "rest": encode(rest, "rest", general),
    }


def _encode_slots(slots: Any, name: str, collector: Collector) -> Typed:
    if not isinstance(slots, dict):
        return encode(slots, name, tensor_leaf(collector, "state."))
    pairs: list[object] = []
    for slot, value in slots.items():
        path = f"{name}.{escape(str(slot))}"
        pairs.append([encode(slot, path), encode(value, path, tensor_leaf(collector, "state."), 1)])
    return {"dict": pairs}


@dataclass(frozen=True, eq=False)
class SavedGroup:
    """A parameter group of the checkpoint."""

    params: tuple[str, ...]
    hyper: Mapping[str, Any]
    typed: Mapping[str, str]


@dataclass(frozen=True)
class SavedOptimizer:
    """The optimizer section of a checkpoint, decoded; tensors are filled by the read."""

    kind: str
    params: Mapping[str, tuple[str, tuple[int, ...]]]
    groups: tuple[SavedGroup, ...]
    state: dict[str, Any]
    loose: Mapping[Any, Any]
    rest: Mapping[Any, Any]


def decode_optimizer(
    section: object,
    staging: TorchStaging,
    live: Mapping[str, torch.Tensor],
    sharded: Mapping[str, Shape],
) -> SavedOptimizer:
    """Read what `encode_optimizer` wrote.

    Args:
        section: The section of the manifest.
        staging: The optimizer part.
        live: The parameters to restore for; the state of a DTensor is read shard by shard.
        sharded: Which stored tensors were DTensors.

    Raises:
        CorruptCheckpointError: If the section is not of that form.
    """
    file = staging.staging.file
    fields = as_object(section) or {}
    params = as_object(fields.get("params"))
    groups, state = as_array(fields.get("groups")), as_array(fields.get("state"))
    name = fields.get("kind")
    loose, rest = (staging.decode(fields.get(key, {"dict": []})) for key in ("loose", "rest"))
    if (
        params is None
        or groups is None
        or state is None
        or not isinstance(name, str)
        or not isinstance(loose, dict)
        or not isinstance(rest, dict)
    ):
        raise CorruptCheckpointError(file, "the optimizer section is malformed")
    shapes = {key: _shape(value, file) for key, value in params.items()}
    per_param: dict[str, Any] = {}
    for item in state:
        entry = as_object(item) or {}
        owner = entry.get("param")
        if not isinstance(owner, str) or owner not in shapes or owner in per_param:
            raise CorruptCheckpointError(file, f"state of the unknown parameter {shown(owner)}")
        per_param[owner] = decode_slots(entry.get("slots"), live.get(owner), staging, sharded)
    decoded = tuple(_group(item, staging) for item in groups)
    owners = [param for group in decoded for param in group.params]
    if sorted(owners) != sorted(shapes):
        raise CorruptCheckpointError(file, "groups and parameters do not agree")
    return SavedOptimizer(name, shapes, decoded, per_param, loose, rest)


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
        if not isinstance(key, str) or key in _STRUCTURAL:
            raise CorruptCheckpointError(
                file, f"the hyperparameter {shown(key)} is {shown(number)}"
            )
    pairs = as_array(typed.get("dict")) or []
    spelled = {key: repr(pair) for key, pair in zip(hyper, pairs, strict=True)}
    return SavedGroup(tuple(str(p) for p in params), hyper, spelled)


@dataclass
class OptimizerPlan:
    """A checked restore of an optimizer.

    Attributes:
        origins: For each live group the saved group that its hyperparameters come from.
        differences: Why it cannot be done; empty if it can.
    """

    optimizer: torch.optim.Optimizer
    saved: SavedOptimizer
    names: list[list[str]]
    hyper: list[dict[str, Any]]
    origins: list[int]
    differences: list[str]

    def apply(self, undo: Callable[[Callable[[], None]], object]) -> None:
        """Load the state; `undo` receives what takes it back."""
        optimizer = self.optimizer
        before_groups = optimizer.param_groups
        before = [(group, dict(group)) for group in before_groups]
        before_state = dict(optimizer.state)
        lrs = [
            (value, value.clone())
            for group in before_groups
            for value in group.values()
            if isinstance(value, torch.Tensor)
        ]

        def take_back() -> None:
            for group, content in before:
                group.clear()
                group.update(content)
            optimizer.param_groups = before_groups
            optimizer.state.clear()
            optimizer.state.update(before_state)
            for value, copied in lrs:
                value.copy_(copied)

        undo(take_back)
        state, groups, number = dict(self.saved.loose), [], 0
        by_param: list[tuple[torch.Tensor, Any]] = []
        for group, listed, hyper in zip(before_groups, self.names, self.hyper, strict=True):
            ids = list(range(number, number + len(listed)))
            number += len(listed)
            for index, name, parameter in zip(ids, listed, group["params"], strict=True):
                if name in self.saved.state:
                    state[index] = self.saved.state[name]
                    by_param.append((parameter, self.saved.state[name]))
            kept = {k: v for k, v in group.items() if k not in _STRUCTURAL}
            dumped: dict[str, Any] = {**kept, **hyper, "params": ids}
            if "param_names" in group:
                dumped["param_names"] = list(group["param_names"])
            groups.append(dumped)
        # Lists of names beside the groups describe the live order, not the saved one.
        names = {k: v for k, v in optimizer.state_dict().items() if k in _STRUCTURAL}
        rest = {**self.saved.rest, **names}
        optimizer.load_state_dict({**rest, "state": state, "param_groups": groups})
        for parameter, slots in by_param:
            if parameter in optimizer.state:
                optimizer.state[parameter] = _keep_dtypes(slots, optimizer.state[parameter])
        for group, (_, old) in zip(optimizer.param_groups, before, strict=True):
            _keep_identity(group, old)


def _keep_dtypes(saved: Any, live: Any) -> Any:
    """Put back what the cast of `load_state_dict` changed; containers keep their live type."""
    if isinstance(saved, torch.Tensor) and isinstance(live, torch.Tensor):
        same = saved.dtype == live.dtype or saved.shape != live.shape
        return live if same else saved.to(live.device)
    if isinstance(saved, dict) and isinstance(live, dict):
        for key in saved.keys() & live.keys():
            live[key] = _keep_dtypes(saved[key], live[key])
    sequences = isinstance(saved, list | tuple) and isinstance(live, list | tuple)
    if sequences and len(saved) == len(live):
        return type(live)(_keep_dtypes(s, v) for s, v in zip(saved, live, strict=True))
    return live


def _keep_identity(group: dict[str, Any], old: Mapping[str, Any]) -> None:
    # A captured or compiled step reads the learning rate from the tensor it was built with.
    for key, value in old.items():
        new = group.get(key)
        if (
            isinstance(value, torch.Tensor)
            and isinstance(new, torch.Tensor | float | int)
            and (not isinstance(new, torch.Tensor) or new.shape == value.shape)
        ):
            value.copy_(torch.as_tensor(new))
            group[key] = value


def live_parameters(
    optimizer: torch.optim.Optimizer, names: list[list[str]]
) -> dict[str, torch.Tensor]:
    """Return the parameters of an optimizer by name."""
    return {
        name: parameter
        for group, listed in zip(optimizer.param_groups, names, strict=True)
        for name, parameter in zip(listed, group["params"], strict=True)
    }


def plan_optimizer(
    optimizer: torch.optim.Optimizer, names: list[list[str]], saved: SavedOptimizer
) -> OptimizerPlan:
    """Compare a checkpoint with a live optimizer.

    Args:
        optimizer: The optimizer.
        names: The names of its parameters, group by group.
        saved: The decoded section.

    Returns:
        A plan with every difference that was found; it may be applied only where there is none.
    """
    differences: list[str] = []
    live_kind = kind(optimizer)
    if saved.kind.rpartition(".")[2] != live_kind.rpartition(".")[2]:
        differences.append(f"the optimizer is {saved.kind} in the checkpoint, {live_kind} here")
    live = live_parameters(optimizer, names)
    differences += live_differences("optimizer parameter", saved.params, live)
    for name in sorted(saved.params.keys() & live.keys()):
        dtype, shape = saved.params[name]
        here = (DTYPES.get(live[name].dtype), tuple(live[name].shape))
        if here != (dtype, shape):
            differences.append(
                f"optimizer parameter {name} is {dtype}{list(shape)} in the checkpoint, "
                f"{here[0]}{list(here[1])} here"
            )
    owner = {name: group for group in saved.groups for name in group.params}
    empty = [group for group in saved.groups if not group.params]
    hyper: list[dict[str, Any]] = []
    origins: list[int] = []
    for g, (group, listed) in enumerate(zip(optimizer.param_groups, names, strict=True)):
        sources = list(dict.fromkeys(owner[name] for name in listed if name in owner))
        if not listed and empty:
            sources = [empty.pop(0)]
        origins.append(saved.groups.index(sources[0]) if sources else 0)
        values, notes = _group_hyper(g, group, sources)
        hyper.append(values)
        differences += notes
    return OptimizerPlan(optimizer, saved, names, hyper, origins, differences)


def _group_hyper(
    g: int, live: Mapping[str, Any], sources: list[SavedGroup]
) -> tuple[dict[str, Any], list[str]]:
    result: dict[str, Any] = {}
    notes: list[str] = []
    for source in sources:
        for key, value in source.hyper.items():
            if key in result and source.typed[key] != sources[0].typed.get(key):
                notes.append(
                    f"group {g} merges groups that differ in {key}: give each its own group"
                )
            if key not in live and key not in _SCHEDULER_KEYS:
                notes.append(f"group {g} has no hyperparameter {shown(key)}, the checkpoint has")
            elif key in live and not _same_kind(value, live[key]):
                notes.append(
                    f"group {g}: {key} is {shown(value)} in the checkpoint, {shown(live[key])} here"
                )
            # Schedulers and the optimizer may change containers in place.
            result[key] = value if isinstance(value, torch.Tensor) else copy.deepcopy(value)
    # Several sources may differ from the live group in the same way.
    return result, list(dict.fromkeys(notes))


def _same_kind(saved: object, live: object) -> bool:
    if saved is None or live is None:
        return True
    if isinstance(saved, bool) or isinstance(live, bool):
        return isinstance(saved, bool) and isinstance(live, bool)
    numbers = (int, float, torch.Tensor)
    if isinstance(saved, numbers) and isinstance(live, numbers):
        return True
    if isinstance(saved, tuple | list) and isinstance(live, tuple | list):
        return len(saved) == len(live) and all(
            _same_kind(s, v) for s, v in zip(saved, live, strict=True)
        )
    return type(saved) is type(live)
