"""Restoring an optimizer: compared with what is live, loaded, read back, or taken back."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from optim_checkpoint._errors import IncompatibleCheckpointError
from optim_checkpoint._partial import Selection
from optim_checkpoint.torch._dtensor import is_dtensor
from optim_checkpoint.torch._hyper import (
    STRUCTURAL,
    Shared,
    group_hyper,
    keep_tensors,
    only_live,
    unapplied,
)
from optim_checkpoint.torch._memory import traced
from optim_checkpoint.torch._names import live_differences
from optim_checkpoint.torch._optimizer import SavedOptimizer, dump, kind, live_parameters
from optim_checkpoint.torch._optimizer_undo import family_of, loads_itself, lost_state, snapshot
from optim_checkpoint.torch._sharding import settle_shards, shard_whole
from optim_checkpoint.torch._tensors import BY_NAME, DTYPES, is_lazy


@dataclass
class OptimizerPlan:
    """A checked restore of an optimizer; applied only after `settle`.

    Attributes:
        optimizer: The live one.
        saved: What the checkpoint has.
        names: The names of its parameters, group by group.
        hyper: For each live group its new hyperparameters.
        origins: For each live group the saved group that its hyperparameters come from.
        new: The live groups that have parameters and no saved group.
        differences: Why it cannot be done; empty if it can.
    """

    optimizer: torch.optim.Optimizer
    saved: SavedOptimizer
    names: list[list[str]]
    hyper: list[dict[str, Any]]
    origins: list[int]
    new: list[int]
    differences: list[str]
    loose: Any = None
    rest: Any = None
    shared: list[Any] = field(default_factory=list)

    def settle(self) -> None:
        """Finish the values, now that the data is there."""
        state = self.saved.state
        for name, parameter in live_parameters(self.optimizer, self.names).items():
            if name not in state:
                continue
            state[name] = slots = settle_shards(state[name])
            if name in self.saved.fit.cast:
                old, new = (BY_NAME[dtype] for dtype in self.saved.fit.cast[name])
                state[name] = slots = _cast(slots, old, new)
            # A converted state was read whole.
            if is_dtensor(parameter) and isinstance(slots, dict):
                state[name] = {
                    slot: shard_whole(value, parameter)
                    if isinstance(value, torch.Tensor)
                    and not is_dtensor(value)
                    and value.ndim
                    and value.shape == parameter.shape
                    else value
                    for slot, value in slots.items()
                }
        # Schedulers and the optimizer may change containers in place.
        self.hyper = [
            {
                key: value if isinstance(value, torch.Tensor) else copy.deepcopy(value)
                for key, value in hyper.items()
            }
            for hyper in self.hyper
        ]
        self.loose, self.rest = self.saved.loose, self.saved.rest

    def apply(self, undo: Callable[[Callable[[], None]], object], first: Shared) -> None:
        """Load the state; `undo` receives what takes it back.

        Args:
            undo: See above.
            first: The tensors among hyperparameters that got a value so far, in any optimizer.
        """
        optimizer = self.optimizer
        family = list(family_of(optimizer))
        for member in family:
            undo(snapshot(member))
        before = [dict(group) for group in optimizer.param_groups]
        self.shared = [member for member in family[1:] if _share_groups(optimizer, member)]
        by_param = self._load()
        for parameter, slots in by_param:
            if parameter in optimizer.state:
                optimizer.state[parameter] = _keep_dtypes(slots, optimizer.state[parameter])
        keep_tensors(optimizer.param_groups, before, first)

    def check(self) -> None:
        """Read back what `apply` loaded.

        Raises:
            IncompatibleCheckpointError: If the optimizer did not take what it was given.
        """
        optimizer = self.optimizer
        notes = [
            f"load_state_dict() of the {kind(optimizer)} gave the {kind(member)} inside it other "
            "param_groups than it has itself: what a scheduler sets would not arrive"
            for member in self.shared
            if not _share_groups(optimizer, member)
        ]
        notes += unapplied(optimizer.param_groups, self.hyper, "param_groups")
        dumped = dump(optimizer)
        notes += unapplied(dumped["param_groups"], self.hyper, "state_dict()")
        notes += lost_state(
            dumped,
            self.names,
            self.saved.state,
            bitwise=any(map(loads_itself, family_of(optimizer))),
        )
        if notes:
            raise IncompatibleCheckpointError(list(dict.fromkeys(notes)))

    def _load(self) -> list[tuple[torch.Tensor, Any]]:
        optimizer = self.optimizer
        before = optimizer.state_dict()
        state, groups, number = dict(self.loose), [], 0
        stays = {*self.saved.fit.missing, *self.saved.fit.left_out}
        numbers = [group["params"] for group in before["param_groups"]] if stays else self.names
        by_param: list[tuple[torch.Tensor, Any]] = []
        for group, listed, hyper, there in zip(
            optimizer.param_groups, self.names, self.hyper, numbers, strict=True
        ):
            ids = list(range(number, number + len(listed)))
            number += len(listed)
            for index, name, parameter, old in zip(
                ids, listed, group["params"], there, strict=True
            ):
                source, key = (before["state"], old) if name in stays else (self.saved.state, name)
                if key in source:
                    state[index] = source[key]
                    by_param.append((parameter, source[key]))
            kept = {k: v for k, v in group.items() if k not in STRUCTURAL}
            dumped: dict[str, Any] = {**kept, **hyper, "params": ids}
            if "param_names" in group:
                dumped["param_names"] = list(group["param_names"])
            groups.append(dumped)
        # Lists of names beside the groups describe the live order, not the saved one.
        names = {k: v for k, v in before.items() if k in STRUCTURAL}
        rest = {**self.rest, **names}
        optimizer.load_state_dict({**rest, "state": state, "param_groups": groups})
        return by_param


def _share_groups(one: Any, other: Any) -> bool:
    groups = {id(group) for group in one.param_groups}
    return any(id(group) in groups for group in other.param_groups)


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


def _cast(slots: Any, old: torch.dtype, new: torch.dtype) -> Any:
    """Return a parameter's state with what had its dtype in the dtype that it has now."""
    if isinstance(slots, torch.Tensor):
        return slots.to(new) if slots.dtype == old and slots.ndim else slots
    if type(slots) is dict:
        return {key: _cast(value, old, new) for key, value in slots.items()}
    if type(slots) in (list, tuple):
        return type(slots)(_cast(value, old, new) for value in slots)
    return slots


def plan_optimizer(
    optimizer: torch.optim.Optimizer,
    names: list[list[str]],
    saved: SavedOptimizer,
    selection: Selection,
    assigned: Mapping[str, torch.dtype],
) -> OptimizerPlan:
    """Compare a checkpoint with a live optimizer.

    Args:
        optimizer: The optimizer.
        names: The names of its parameters, group by group.
        saved: The decoded section.
        selection: What of it to load.
        assigned: The parameters that get other memory first, with the dtype of that.

    Returns:
        A plan with every difference that was found; it may be applied only where there is none.
    """
    differences: list[str] = []
    dump(optimizer)
    live_kind = kind(optimizer)
    if saved.kind.rpartition(".")[2] != live_kind.rpartition(".")[2]:
        differences.append(f"the optimizer is {saved.kind} in the checkpoint, {live_kind} here")
    same = _place(saved.kind) == _place(live_kind)
    live = live_parameters(optimizer, names)
    differences += saved.fit.differences
    if not selection.partial:
        differences += live_differences("optimizer parameter", saved.params, live)
    for name in sorted(saved.params.keys() & live.keys()):
        if is_lazy(live[name]):
            differences.append(
                f"optimizer parameter {name} has no shape yet: run the model once first"
            )
            continue
        if live[name].is_meta and name not in assigned:
            differences.append(
                f"optimizer parameter {name} is on the meta device: give it memory first, or "
                "restore with model= and assign=True"
            )
        if (reason := traced(live[name])) is not None:
            differences.append(f"optimizer parameter {name} {reason}")
        dtype, shape = saved.params[name]
        here = (DTYPES.get(assigned.get(name, live[name].dtype)), tuple(live[name].shape))
        if here[0] is not None and here[0] != dtype:
            saved.fit.cast[name] = (dtype, here[0])
        if here[1] != shape or not selection.casting.allows(dtype, here[0]):
            differences.append(
                f"optimizer parameter {name} is {dtype}{list(shape)} in the checkpoint, "
                f"{here[0]}{list(here[1])} here"
            )
    owner = {name: group for group in saved.groups for name in group.params}
    empty = [group for group in saved.groups if not group.params and not group.emptied]
    hyper: list[dict[str, Any]] = []
    origins: list[int] = []
    new: list[int] = []
    for g, (group, listed) in enumerate(zip(optimizer.param_groups, names, strict=True)):
        sources = list(dict.fromkeys(owner[name] for name in listed if name in owner))
        if not listed and empty:
            sources = [empty.pop(0)]
        origins.append(saved.groups.index(sources[0]) if sources else 0)
        if listed and not sources:
            new.append(g)
        values, notes = group_hyper(g, group, sources, same_class=same)
        hyper.append(values)
        differences += notes
        # A checkpoint of JAX has no hyperparameters to compare with.
        if same and values:
            differences += only_live(g, group, values, getattr(optimizer, "defaults", {}))
    return OptimizerPlan(optimizer, saved, names, hyper, origins, new, differences)


def _place(name: str) -> tuple[str, str]:
    """Return the package and the class of a kind: modules move from one release to the next."""
    return name.partition(".")[0], name.rpartition(".")[2]
