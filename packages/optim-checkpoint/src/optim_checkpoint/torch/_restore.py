"""Restoring a torch training run: everything is read and verified before anything changes."""

import contextlib
import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from optim_checkpoint._collect import Staging, read_staged
from optim_checkpoint._errors import (
    CheckpointWarning,
    CorruptCheckpointError,
    IncompatibleCheckpointError,
    shown,
)
from optim_checkpoint._folder import StrPath
from optim_checkpoint._generation import Generation
from optim_checkpoint._json import as_array, as_object
from optim_checkpoint._peers import Team
from optim_checkpoint._select import Skipped, choose
from optim_checkpoint.torch import _rng
from optim_checkpoint.torch._dtensor import is_dtensor
from optim_checkpoint.torch._from_jax import convert_optimizer, model_entries, settle_steps
from optim_checkpoint.torch._names import (
    live_differences,
    model_state,
    parameter_names,
    shape_differences,
    unwrap,
)
from optim_checkpoint.torch._optimizer import (
    OptimizerPlan,
    decode_optimizer,
    live_parameters,
    plan_optimizer,
)
from optim_checkpoint.torch._processes import is_sharded, readers
from optim_checkpoint.torch._save import Stateful
from optim_checkpoint.torch._scheduler import like_live, regroup
from optim_checkpoint.torch._sharding import (
    LocalShard,
    copy_shard,
    settle_shards,
    shard_whole,
    stage_shard,
)
from optim_checkpoint.torch._tensors import TorchStaging, copy_all, identity

Undo = Callable[[Callable[[], None]], object]


@dataclass(frozen=True)
class Restored:
    """What a restore found beside what it loaded in place.

    Attributes:
        step: The step that was restored.
        extra: What `save` got as `extra`, or None.
        path: The generation it came from.
        skipped: Newer generations that were damaged, with the reasons.
    """

    step: int
    extra: dict[str, Any] | None
    path: Path
    skipped: tuple[Skipped, ...]


@dataclass
class _Target:
    model: torch.nn.Module | None
    optimizer: torch.optim.Optimizer | None
    scheduler: Stateful | None
    scaler: Stateful | None
    rng: bool


@dataclass
class _Plan:
    target: _Target
    model: dict[str, Any]
    optimizer: OptimizerPlan | None
    train: dict[str, Any]
    generators: int

    def apply(self, undo: Undo) -> None:
        """Load everything that can still fail; `undo` receives what takes it back."""
        if self.optimizer is not None:
            self.optimizer.apply(undo)
        for name, stateful in (
            ("scheduler", self.target.scheduler),
            ("scaler", self.target.scaler),
        ):
            if stateful is not None:
                before = copy.deepcopy(stateful.state_dict())
                undo(_loader(stateful, before))
                stateful.load_state_dict(like_live(self.train[name], before))
        if self.target.rng and "rng" in self.train:
            _rng.restore(self.train["rng"], undo)
        if self.target.model is not None:
            _load_others(self.target.model, self.model, undo)

    def finish(self) -> None:
        """Copy the values into the model's tensors, which cannot fail and is not taken back."""
        if self.target.model is None:
            return
        live = model_state(self.target.model)
        whole: list[tuple[torch.Tensor, torch.Tensor]] = []
        with torch.no_grad():
            for name, value in self.model.items():
                tensor = live[name]
                if isinstance(value, LocalShard):
                    copy_shard(value, tensor)
                elif isinstance(tensor, torch.Tensor) and isinstance(value, torch.Tensor):
                    whole.append((tensor, value))
            copy_all(whole)


def _loader(stateful: Stateful, state: Any) -> Callable[[], None]:
    def load() -> None:
        stateful.load_state_dict(state)

    return load


def _load_others(model: torch.nn.Module, saved: dict[str, Any], undo: Undo) -> None:
    live = model_state(model)
    others = {name: value for name, value in saved.items() if not _is_copied(value, live[name])}
    if others:
        inner = unwrap(model)
        before = {name: copy.deepcopy(live[name]) for name in others}
        undo(lambda: _load_extra(inner, before))
        _load_extra(inner, others)


def _is_copied(saved: object, live: object) -> bool:
    return isinstance(saved, torch.Tensor | LocalShard) and isinstance(live, torch.Tensor)


def _load_extra(model: torch.nn.Module, values: dict[str, Any]) -> None:
    model.load_state_dict(values, strict=False)


def _section(generation: Generation, name: str) -> object:
    sections = generation.manifest.sections
    if name not in sections:
        raise IncompatibleCheckpointError(
            [f"the checkpoint of step {generation.name.step} holds no {name}"]
        )
    return sections[name]


def _plan_model(
    generation: Generation, model: torch.nn.Module, staging: TorchStaging, differences: list[str]
) -> dict[str, Any]:
    file = staging.staging.file
    typed: dict[str, object] = {}
    section = _section(generation, "model")
    if generation.manifest.framework.get("name") == "jax":
        section = model_entries(section, staging)
    for item in as_array(section) or []:
        pair = as_array(item) or []
        name = pair[0] if len(pair) == 2 else None
        if not isinstance(name, str) or name in typed:
            raise CorruptCheckpointError(file, f"the model entry {shown(item)} is malformed")
        typed[name] = pair[1]
    live = model_state(model)
    differences += live_differences("model entry", typed, live)
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, value in typed.items():
        key = (as_object(value) or {}).get("tensor")
        if key is not None:
            info = staging.staging.info(key)
            shapes[name] = (info.dtype, info.shape)
        if name in live and isinstance(live[name], torch.Tensor) != (key is not None):
            differences.append(f"model entry {name} is a tensor only on one side")
    tensors = {name: value for name, value in live.items() if isinstance(value, torch.Tensor)}
    differences += _tie_differences(typed, tensors)
    differences += shape_differences("model entry", shapes, tensors)
    if differences:
        return {}
    decoded: dict[str, Any] = {}
    for name, value in typed.items():
        if is_dtensor(live[name]):
            key = str((as_object(value) or {})["tensor"])
            # pyright does not know that is_dtensor() has asked for the class.
            placements = tuple(tensors[name].placements)  # pyright: ignore[reportAttributeAccessIssue]
            decoded[name] = stage_shard(staging, key, live[name], placements)
        else:
            decoded[name] = staging.decode(value)
    return decoded


def _tie_differences(typed: dict[str, object], live: dict[str, torch.Tensor]) -> list[str]:
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


def _plan_stateful(name: str, saved: Any, live: Stateful, differences: list[str]) -> None:
    here = live.state_dict()
    if type(saved) is not type(here):
        differences.append(f"the {name} stored {type(saved).__name__}, not {type(here).__name__}")
    elif isinstance(saved, dict):
        differences += live_differences(
            f"{name} entry", map(str, saved.keys()), map(str, here.keys())
        )


def _generators(fields: dict[str, object], rank: int) -> tuple[object, int]:
    """Return the stored generators of a process, or None, and of how many there are some."""
    ranks = as_array(fields.get("ranks"))
    if ranks is None:
        ranks = [{"rng": fields["rng"]}] if "rng" in fields else []
    stored = [(as_object(own) or {}).get("rng") for own in ranks]
    count = sum(rng is not None for rng in stored)
    return (stored[rank] if rank < len(stored) else None), count


def _read(generation: Generation, target: _Target, team: Team) -> _Plan:
    staged = {
        part: TorchStaging(Staging.of(generation, part)) for part in ("model", "optim", "train")
    }
    differences: list[str] = []
    framework = generation.manifest.framework.get("name")
    if framework not in ("torch", "jax"):
        raise IncompatibleCheckpointError([f"it was saved by {shown(framework)}, not by torch"])
    steps: list[tuple[dict[str, Any], torch.Tensor]] = []
    model: dict[str, Any] = {}
    if target.model is not None:
        model = _plan_model(generation, target.model, staged["model"], differences)
    plan = None
    if target.optimizer is not None:
        section = _section(generation, "optimizer")
        names = parameter_names(target.optimizer, target.model).groups
        if framework == "torch":
            live = live_parameters(target.optimizer, names)
            saved = decode_optimizer(section, staged["optim"], live, generation.shards("optim"))
        else:
            saved, steps = convert_optimizer(
                section, target.optimizer, names, staged["optim"], differences
            )
        plan = plan_optimizer(target.optimizer, names, saved)
        differences += plan.differences
    fields = as_object(_section(generation, "train"))
    if fields is None:
        raise CorruptCheckpointError(str(generation.name), "the train section is malformed")
    train: dict[str, Any] = {}
    rng, generators = _generators(fields, team.rank)
    stored = fields if rng is None else {**fields, "rng": rng}
    wanted = {
        "scheduler": target.scheduler is not None,
        "scaler": target.scaler is not None,
        "extra": True,
        "rng": target.rng and rng is not None,
    }
    for name, asked in wanted.items():
        if asked and framework == "torch" and name in stored:
            train[name] = staged["train"].decode(stored[name])
    if plan is not None and "scheduler" in train and not differences:
        train["scheduler"] = regroup(train["scheduler"], plan.origins, len(plan.saved.groups))
    for name, stateful in (("scheduler", target.scheduler), ("scaler", target.scaler)):
        if stateful is None:
            continue
        if name not in train:
            differences.append(f"the checkpoint holds no {name}")
        else:
            _plan_stateful(name, train[name], stateful, differences)
    if differences:
        raise IncompatibleCheckpointError(differences)
    read_staged(
        generation, *(item.staging for item in staged.values()), rank=team.rank, size=team.size
    )
    settle_steps(steps)
    if plan is not None:
        _settle_state(plan)
    return _Plan(target, model, plan, train, generators if framework == "torch" else 0)


def _settle_state(plan: OptimizerPlan) -> None:
    """Make DTensors of what was read for the state of parameters that are."""
    state = plan.saved.state
    for name, parameter in live_parameters(plan.optimizer, plan.names).items():
        if not is_dtensor(parameter) or name not in state:
            continue
        slots = settle_shards(state[name])
        # A converted state was read whole.
        if isinstance(slots, dict):
            slots = {
                slot: shard_whole(value, parameter)
                if isinstance(value, torch.Tensor)
                and not is_dtensor(value)
                and value.ndim
                and value.shape == parameter.shape
                else value
                for slot, value in slots.items()
            }
        state[name] = slots


def _warn_of_generators(saved: int, team: Team) -> None:
    if saved not in (0, team.size):
        what = "those of this process are" if team.rank < saved else "none is"
        warnings.warn(
            f"the generators of {saved} processes were saved, {team.size} are here: in process "
            f"{team.rank} {what} restored",
            CheckpointWarning,
            stacklevel=3,
        )


def restore(
    path: StrPath,
    step: int | None = None,
    *,
    model: torch.nn.Module | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    scheduler: Stateful | None = None,
    scaler: Stateful | None = None,
    rng: bool = True,
    process_group: Any = None,
) -> Restored:
    """Restore a training run in place, all or nothing.

    The whole generation is read and every digest compared; then names, shapes, dtypes and
    hyperparameters are compared with what is live; only then does anything change. The values are
    copied into the model's own tensors; an optimizer's state is matched by parameter name and keeps
    its saved dtypes.

    A checkpoint of JAX is read too, where the parameters have the same dotted names and shapes and
    the optimizers are a pair (AdamW, sign momentum, SGD with momentum); hyperparameters stay the
    live ones, and its `extra` and its keys are not read.

    Where the live model or optimizer has DTensors, every process makes this call and reads the
    shards it holds, from a checkpoint of any mesh or of one process; together they verify all of
    it, take the same generation, and change nothing where one of them fails. Process n gets the
    generators of process n; where their numbers differ, a `CheckpointWarning` says so.

    Args:
        path: The folder of the run.
        step: The step; None takes the newest generation that verifies, with a
            `CheckpointWarning` for each one skipped.
        model: The module to load into, if wanted.
        optimizer: The optimizer to load into, if wanted.
        scheduler: The scheduler to load into, if wanted.
        scaler: The GradScaler to load into, if wanted.
        rng: Whether to set the global generators of torch, NumPy and Python, where stored.
        process_group: The processes that restore together; None is the default group where
            something is sharded, and this process alone where nothing is.

    Returns:
        The step, the extra values, the path and what was skipped.

    Raises:
        CheckpointNotFoundError: If there is no such generation.
        CorruptCheckpointError: If every candidate is damaged.
        CheckpointReadError: If the generation cannot be read; no older one is taken for it.
        IncompatibleCheckpointError: With every difference between checkpoint and live objects.
    """
    target = _Target(model, optimizer, scheduler, scaler, rng)
    team = readers(process_group, sharded=is_sharded(model, optimizer))
    chosen = choose(path, step, lambda generation: _read(generation, target, team), team)
    with contextlib.ExitStack() as stack:

        def apply() -> dict[str, object]:
            chosen.value.apply(lambda action: stack.callback(action))
            return {}

        team.agree(apply)
        stack.pop_all()
    chosen.value.finish()
    if rng:
        _warn_of_generators(chosen.value.generators, team)
    return Restored(chosen.step, chosen.value.train.get("extra"), chosen.path, chosen.skipped)
