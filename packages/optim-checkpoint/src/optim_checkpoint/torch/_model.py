"""Restoring a model: what is its own memory is copied into, anything else it loads itself."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from optim_checkpoint._errors import CorruptCheckpointError, IncompatibleCheckpointError, shown
from optim_checkpoint._generation import Generation
from optim_checkpoint._json import as_array, as_object
from optim_checkpoint.torch._dtensor import is_dtensor
from optim_checkpoint.torch._from_jax import model_entries
from optim_checkpoint.torch._layout import overlaps
from optim_checkpoint.torch._names import (
    clean,
    live_differences,
    model_state,
    shape_differences,
    unwrap,
)
from optim_checkpoint.torch._own_load import Part, clean_prefix, own_memory, parts_of
from optim_checkpoint.torch._scheduler import like_live
from optim_checkpoint.torch._sharding import LocalShard, copy_shard, settle_shards, stage_shard
from optim_checkpoint.torch._tensors import TorchStaging, copy_all, identity, is_lazy

Undo = Callable[[Callable[[], None]], object]


@dataclass
class ModelPlan:
    """A checked restore of a model.

    Attributes:
        live: Its state dict under clean names.
        parts: What of it loads itself.
        saved: The decoded entries by name; filled by the read.
        notes: How the entries of its parts differ, where only the parts can say if that matters.
    """

    live: dict[str, object]
    parts: list[Part]
    saved: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def apply(self, undo: Undo) -> None:
        """Let the parts that load themselves do so; `undo` receives what takes it back.

        Raises:
            IncompatibleCheckpointError: If one refuses its entries, or holds others afterwards.
        """
        for part in self.parts:
            prefix = clean_prefix(part.prefix)
            # Wrappers inside the part have their names in its own state dict.
            raw = {clean(name): name for name in part.module.state_dict()}
            values = {
                raw.get(name.removeprefix(prefix), name.removeprefix(prefix)): self._value(name)
                for name in self.saved
                if part.holds(name)
            }
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
            return value if is_dtensor(value) else value.to(device)
        return like_live(value, here)

    def finish(self) -> None:
        """Copy the values into the model's memory, which cannot fail and is not taken back."""
        whole: list[tuple[torch.Tensor, torch.Tensor]] = []
        with torch.no_grad():
            for name, value in self.saved.items():
                tensor: Any = self.live.get(name)
                if any(part.holds(name) for part in self.parts):
                    continue
                if isinstance(value, LocalShard):
                    copy_shard(value, tensor)
                else:
                    whole.append((tensor, value))
            copy_all(whole)


def plan_model(
    generation: Generation,
    section: object,
    model: torch.nn.Module,
    staging: TorchStaging,
    differences: list[str],
) -> ModelPlan:
    """Compare the model section of a checkpoint with a live model.

    Args:
        generation: The open generation.
        section: The section of the manifest.
        model: The model.
        staging: The model part.
        differences: Receives every difference.
    """
    if generation.manifest.framework.get("name") == "jax":
        section = model_entries(section, staging)
    typed = _entries(section, staging.staging.file)
    live = model_state(model)
    plan = ModelPlan(live, parts_of(unwrap(model), live))

    def is_own(name: str) -> bool:
        return not any(part.holds(name) for part in plan.parts)

    outside = {name for name in typed.keys() | live.keys() if is_own(name)}
    differences += _differences(typed, live, outside, staging)
    plan.notes += _differences(typed, live, (typed.keys() | live.keys()) - outside, staging)
    differences += [
        f"model entry {name} is on the meta device: give it memory first"
        for name, tensor in own_memory(unwrap(model)).items()
        if name in typed and not is_own(name) and tensor.is_meta
    ]
    if differences:
        differences += plan.notes
        return plan
    for name, value in typed.items():
        here = live.get(name)
        if is_dtensor(here) and "tensor" in (as_object(value) or {}):
            key = str((as_object(value) or {})["tensor"])
            # pyright does not know that is_dtensor() has asked for the class.
            placements = tuple(here.placements)  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
            plan.saved[name] = stage_shard(staging, key, here, placements)
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


def _differences(
    typed: Mapping[str, object], live: Mapping[str, object], names: set[str], staging: TorchStaging
) -> list[str]:
    """List how the entries of these names differ."""
    there = {name: value for name, value in typed.items() if name in names}
    here = {name: value for name, value in live.items() if name in names}
    differences = live_differences("model entry", there, here)
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, value in there.items():
        key = (as_object(value) or {}).get("tensor")
        if key is not None:
            info = staging.staging.info(key)
            shapes[name] = (info.dtype, info.shape)
        if name in here and isinstance(here[name], torch.Tensor) != (key is not None):
            differences.append(f"model entry {name} is a tensor only on one side")
    tensors = {
        name: value
        for name, value in here.items()
        if isinstance(value, torch.Tensor) and not is_lazy(value)
    }
    differences += _tie_differences(there, tensors)
    differences += [
        f"model entry {name} has elements that share memory, as expand() makes them: change it "
        "with .contiguous()"
        for name, tensor in tensors.items()
        if overlaps(tensor)
    ]
    return differences + shape_differences("model entry", shapes, tensors)


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
