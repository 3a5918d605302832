"""Restoring a model: what is its own memory is copied into, anything else it loads itself."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from optim_checkpoint._casts import SAFE, is_float
from optim_checkpoint._errors import CorruptCheckpointError, IncompatibleCheckpointError, shown
from optim_checkpoint._garbage import kept
from optim_checkpoint._generation import Generation
from optim_checkpoint._json import as_array, as_object
from optim_checkpoint._partial import Fit, Selection
from optim_checkpoint.torch._assign import Undo, assign, assign_differences
from optim_checkpoint.torch._dtensor import is_dtensor
from optim_checkpoint.torch._from_jax import model_entries
from optim_checkpoint.torch._layout import overlaps, state_order
from optim_checkpoint.torch._memory import no_memory
from optim_checkpoint.torch._names import (
    clean,
    live_differences,
    model_state,
    tensor_differences,
    unwrap,
)
from optim_checkpoint.torch._own_load import Part, clean_prefix, own_memory, parts_of
from optim_checkpoint.torch._scheduler import like_live
from optim_checkpoint.torch._sharding import LocalShard, copy_shard, settle_shards, stage_shard
from optim_checkpoint.torch._tensors import (
    BY_NAME,
    DTYPES,
    TorchStaging,
    copy_all,
    identity,
    is_lazy,
)


@dataclass
class ModelPlan:
    """A checked restore of a model.

    Attributes:
        live: Its state dict under clean names.
        parts: What of it loads itself.
        fit: Which entries are loaded.
        partial: Whether entries may stay what they are.
        assigned: The parameters and buffers that get the memory of what was read.
        saved: The decoded entries by name; filled by the read.
        notes: How the entries of its parts differ, where only the parts can say if that matters.
    """

    live: dict[str, object]
    parts: list[Part]
    fit: Fit
    partial: bool
    assigned: dict[str, torch.Tensor] = field(default_factory=dict)
    saved: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def assigned_dtypes(self) -> dict[str, torch.dtype]:
        """Return the dtypes that assigned tensors will have, by name."""
        cast = {name: BY_NAME[dtype] for name, (_, dtype) in self.fit.cast.items()}
        return {name: cast.get(name, tensor.dtype) for name, tensor in self.assigned.items()}

    def assign(self, undo: Undo) -> None:
        """Give the tensors that are assigned their new memory; `undo` takes it back."""
        assign(self.assigned, {name: self._converted(name) for name in self.assigned}, undo)

    def apply(self, undo: Undo) -> None:
        """Let the parts that load themselves do so; `undo` receives what takes it back.

        Raises:
            IncompatibleCheckpointError: If one refuses its entries, or holds others afterwards.
        """
        for part in self.parts:
            prefix = clean_prefix(part.prefix)
            # Wrappers inside the part have their names in its own state dict.
            before = part.module.state_dict()
            raw = {clean(name): name for name in before}
            values = {
                raw.get(name.removeprefix(prefix), name.removeprefix(prefix)): self._value(name)
                for name in self.saved
                if part.holds(name)
            }
            if self.partial:
                if not values:
                    continue
                # A part loads all of its entries or none: what stays is given to it again.
                values = {name: values.get(name, value) for name, value in before.items()}
            try:
                differences = part.load(values, undo)
            except IncompatibleCheckpointError as error:
                raise IncompatibleCheckpointError([*self.notes, *error.differences]) from error
            if differences:
                raise IncompatibleCheckpointError(differences)

    def _value(self, name: str) -> Any:
        here, value = self.live.get(name), settle_shards(self.saved[name])
        if isinstance(value, torch.Tensor):
            device = here.device if isinstance(here, torch.Tensor) else value.device
            value = self._converted(name, value)
            return value if is_dtensor(value) else value.to(device)
        return like_live(value, here)

    def _converted(self, name: str, value: Any = None) -> torch.Tensor:
        """Return a value in the dtype that it is to have."""
        value = self.saved[name] if value is None else value
        return value.to(BY_NAME[self.fit.cast[name][1]]) if name in self.fit.cast else value

    def beyond(self) -> list[str]:
        """Return the entries with values beyond the range of the dtype they were cast to."""
        found: list[str] = []
        for name, (_, dtype) in self.fit.cast.items():
            value, made = self.saved[name], BY_NAME[dtype]
            value = value.local if isinstance(value, LocalShard) else value
            if not made.is_floating_point:
                continue  # what is safe is wider
            old, new = torch.finfo(value.dtype), torch.finfo(made)
            if old.max > new.max or old.min < new.min:
                value = value.float() if value.dtype.itemsize == 1 else value
                outside = (value > new.max) | (value < new.min)
                # A dtype without infinities makes them nan or its largest value.
                if torch.tensor(torch.inf).to(made).float().isinf():
                    outside &= value.isfinite()
                found += [name] * bool(outside.any())
        return sorted(found)

    def finish(self) -> None:
        """Copy the values into the model's memory, which cannot fail and is not taken back."""
        whole: list[tuple[torch.Tensor, torch.Tensor]] = []
        with torch.no_grad():
            for name, value in self.saved.items():
                tensor: Any = self.live.get(name)
                if name in self.assigned or any(part.holds(name) for part in self.parts):
                    continue
                if isinstance(value, LocalShard):
                    copy_shard(value, tensor)
                else:
                    whole.append((tensor, value))
            copy_all(whole)


@kept()
def plan_model(
    generation: Generation,
    section: object,
    model: torch.nn.Module,
    staging: TorchStaging,
    differences: list[str],
    selection: Selection,
    *,
    assigns: bool = False,
) -> ModelPlan:
    """Compare the model section of a checkpoint with a live model.

    Args:
        generation: The open generation.
        section: The section of the manifest.
        model: The model.
        staging: The model part.
        differences: Receives every difference.
        selection: What of it to load.
        assigns: Whether parameters and buffers get the memory of what is read.
    """
    if generation.manifest.framework.get("name") == "jax":
        section = model_entries(section, staging)
    typed = _entries(section, staging.staging.file)
    live, memory = model_state(model), own_memory(unwrap(model))
    fit = selection.fit("model entry", typed, live)
    plan = ModelPlan(live, parts_of(unwrap(model), live), fit, selection.partial)
    differences += fit.differences
    typed = {selection.name_of(name): value for name, value in typed.items()}
    if selection.partial:
        typed = {name: typed[name] for name in fit.there}
        live = {name: live[name] for name in fit.there}

    def is_own(name: str) -> bool:
        return not any(part.holds(name) for part in plan.parts)

    comparison = _Comparison(typed, live, staging, selection, fit, assigns=assigns)
    outside = {name for name in typed.keys() | live.keys() if is_own(name)}
    differences += comparison.differences(outside)
    plan.notes += comparison.differences((typed.keys() | live.keys()) - outside)
    memory = {name: tensor for name, tensor in memory.items() if name in typed}
    if assigns:
        differences += assign_differences(memory, is_own)
        plan.assigned = {name: tensor for name, tensor in memory.items() if is_own(name)}
    else:
        differences += [
            f"model entry {name} is on the meta device: give it memory first, or restore with "
            "assign=True"
            for name, tensor in memory.items()
            if not is_own(name) and tensor.is_meta
        ]
        differences += [
            f"model entry {name} {reason}"
            for name, tensor in memory.items()
            if not (is_own(name) or tensor.is_meta or is_lazy(tensor))
            if (reason := no_memory(tensor)) is not None
        ]
    if differences:
        differences += plan.notes
        return plan
    keys: dict[str, Any] = {
        name: (as_object(value) or {}).get("tensor") for name, value in typed.items()
    }
    copied = {
        str(key)
        for name, key in keys.items()
        if key is not None and is_own(name) and name not in plan.assigned
        if not is_dtensor(live.get(name))
    }
    direct = {key for name, key in keys.items() if key in copied and staging.into(key, live[name])}
    staging.pool(copied - direct)
    for name, value in typed.items():
        here: Any = live.get(name)
        key = keys[name]
        if key is not None and is_dtensor(here):
            plan.saved[name] = stage_shard(staging, str(key), here, tuple(here.placements), here)
        elif key is not None and name in plan.assigned:
            shape = staging.staging.info(key).shape
            plan.saved[name] = staging.tensor(key, state_order(memory[name], shape))
        else:
            plan.saved[name] = staging.decode(value)
    return plan


def _entries(section: object, file: str) -> dict[str, object]:
    typed: dict[str, object] = {}
    for item in as_array(section) or []:
        pair = as_array(item) or []
        name = pair[0] if len(pair) == 2 else None
        if not isinstance(name, str) or name in typed:
            raise CorruptCheckpointError(file, f"the model entry {shown(item)} is malformed")
        typed[name] = pair[1]
    return typed


@dataclass(frozen=True)
class _Comparison:
    """The entries of a checkpoint under their live names, and the live ones."""

    typed: Mapping[str, object]
    live: Mapping[str, object]
    staging: TorchStaging
    selection: Selection
    fit: Fit
    assigns: bool

    def differences(self, names: set[str]) -> list[str]:
        """List how the entries of these names differ."""
        there = {name: value for name, value in self.typed.items() if name in names}
        here = {name: value for name, value in self.live.items() if name in names}
        differences = live_differences("model entry", there, here)
        tensors: dict[str, torch.Tensor] = {}
        for name, value in here.items():
            if isinstance(value, torch.Tensor) and not is_lazy(value):
                tensors[name] = value
                if overlaps(value) and not self.assigns:
                    differences.append(
                        f"model entry {name} has elements that share memory, as expand() makes "
                        "them: change it with .contiguous()"
                    )
        for name, value in there.items():
            key = (as_object(value) or {}).get("tensor")
            if name in here and isinstance(here[name], torch.Tensor) != (key is not None):
                differences.append(f"model entry {name} is a tensor only on one side")
            elif key is not None and name in tensors:
                differences += self._tensor(name, key, tensors[name])
        return differences + _tie_differences(there, tensors)

    def _tensor(self, name: str, key: object, tensor: torch.Tensor) -> list[str]:
        what, info = f"model entry {name}", self.staging.staging.info(key)
        differences = tensor_differences(what, info.shape, tensor, assigns=self.assigns)
        casting = self.selection.casting
        target = DTYPES.get(tensor.dtype)
        if self.assigns and casting.rule not in (None, SAFE) and is_float(info.dtype):
            target = casting.rule
        if not casting.allows(info.dtype, target):
            how = {None: "", SAFE: ", which does not hold every value of it"}
            differences.append(
                f"{what} has dtype {info.dtype} in the checkpoint, {tensor.dtype} in the live one"
                + how.get(casting.rule, f", and cast is {casting.rule}")
            )
        elif target is not None and target != info.dtype:
            self.fit.cast[name] = (info.dtype, target)
        return differences


def _tie_differences(typed: Mapping[str, object], live: Mapping[str, torch.Tensor]) -> list[str]:
    """List the live tensors that are one memory and would get two values."""
    first: dict[Any, str] = {}
    differences: list[str] = []
    for name, tensor in live.items():
        memory = identity(tensor)
        if memory is None or name not in typed:
            continue
        other = first.setdefault(memory, name)
        if typed[other] != typed[name]:
            differences.append(
                f"{other} and {name} are tied in the live model, the checkpoint has both"
            )
    return differences
