"""Restoring a torch training run: everything is read and verified before anything changes."""

import contextlib
import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from optim_checkpoint._collect import Staging, read_staged, settle
from optim_checkpoint._errors import (
    CorruptCheckpointError,
    IncompatibleCheckpointError,
    shown,
)
from optim_checkpoint._folder import StrPath
from optim_checkpoint._generation import Generation
from optim_checkpoint._json import as_array, as_object
from optim_checkpoint._select import Skipped, choose
from optim_checkpoint.torch import _rng
from optim_checkpoint.torch._from_jax import convert_optimizer, model_entries, settle_steps
from optim_checkpoint.torch._names import (
    model_state,
    name_differences,
    shape_differences,
    unwrap,
)
from optim_checkpoint.torch._optimizer import OptimizerPlan, decode_optimizer, plan_optimizer
from optim_checkpoint.torch._save import Stateful
from optim_checkpoint.torch._scheduler import regroup
from optim_checkpoint.torch._tensors import TorchStaging, identity

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

    def apply(self, undo: Undo) -> None:
        # What can still fail comes first, the copies into parameters that cannot come last.
        if self.optimizer is not None:
            self.optimizer.apply(undo)
        for name, stateful in (
            ("scheduler", self.target.scheduler),
            ("scaler", self.target.scaler),
        ):
            if stateful is not None:
                before = copy.deepcopy(stateful.state_dict())
                undo(_loader(stateful, before))
                stateful.load_state_dict(self.train[name])
        if self.target.rng and "rng" in self.train:
            _rng.restore(self.train["rng"], undo)
        if self.target.model is not None:
            _load_model(self.target.model, self.model, undo)


def _loader(stateful: Stateful, state: Any) -> Callable[[], None]:
    def load() -> None:
        stateful.load_state_dict(state)

    return load


def _load_model(model: torch.nn.Module, saved: dict[str, Any], undo: Undo) -> None:
    live = model_state(model)
    others = {name: value for name, value in saved.items() if not _is_copied(value, live[name])}
    if others:
        inner = unwrap(model)
        before = {name: copy.deepcopy(live[name]) for name in others}
        undo(lambda: _load_others(inner, before))
        _load_others(inner, others)
    with torch.no_grad():
        for name, value in saved.items():
            tensor = live[name]
            if isinstance(tensor, torch.Tensor) and _is_copied(value, tensor):
                tensor.copy_(value)


def _is_copied(saved: object, live: object) -> bool:
    return isinstance(saved, torch.Tensor) and isinstance(live, torch.Tensor)


def _load_others(model: torch.nn.Module, values: dict[str, Any]) -> None:
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
    differences += name_differences("model entry", typed, live)
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
    return {name: staging.decode(value) for name, value in typed.items()}


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
        differences += name_differences(
            f"{name} entry", map(str, saved.keys()), map(str, here.keys())
        )


def _read(generation: Generation, target: _Target) -> _Plan:
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
        if framework == "torch":
            saved = decode_optimizer(section, staged["optim"])
        else:
            saved, steps = convert_optimizer(
                section, target.optimizer, target.model, staged["optim"], differences
            )
        plan = plan_optimizer(target.optimizer, target.model, saved)
        differences += plan.differences
    fields = as_object(_section(generation, "train"))
    if fields is None:
        raise CorruptCheckpointError(str(generation.name), "the train section is malformed")
    train: dict[str, Any] = {}
    for name in ("scheduler", "scaler", "extra", "rng"):
        wanted = getattr(target, name, True)
        if framework == "torch" and name in fields and wanted not in (None, False):
            train[name] = staged["train"].decode(fields[name])
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
    read_staged(generation, *(item.staging for item in staged.values()))
    settle_steps(steps)
    train = {name: settle(value) for name, value in train.items()}
    return _Plan(target, model, plan, train)


def restore(
    path: StrPath,
    step: int | None = None,
    *,
    model: torch.nn.Module | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    scheduler: Stateful | None = None,
    scaler: Stateful | None = None,
    rng: bool = True,
) -> Restored:
    """Restore a training run in place, all or nothing.

    The whole generation is read and every digest compared; then names, shapes, dtypes and
    hyperparameters are compared with what is live; only then does anything change. The values are
    copied into the model's own tensors; an optimizer's state is matched by parameter name and keeps
    its saved dtypes.

    A checkpoint of JAX is read too, where the parameters have the same dotted names and shapes and
    the optimizers are a pair (AdamW, sign momentum, SGD with momentum); hyperparameters stay the
    live ones, and its `extra` and its keys are not read.

    Args:
        path: The folder of the run.
        step: The step; None takes the newest generation that verifies, with a
            `CheckpointWarning` for each one skipped.
        model: The module to load into, if wanted.
        optimizer: The optimizer to load into, if wanted.
        scheduler: The scheduler to load into, if wanted.
        scaler: The GradScaler to load into, if wanted.
        rng: Whether to set the global generators of torch, NumPy and Python, where stored.

    Returns:
        The step, the extra values, the path and what was skipped.

    Raises:
        CheckpointNotFoundError: If there is no such generation.
        CorruptCheckpointError: If every candidate is damaged.
        IncompatibleCheckpointError: With every difference between checkpoint and live objects.
    """
    target = _Target(model, optimizer, scheduler, scaler, rng)
    chosen = choose(path, step, lambda generation: _read(generation, target))
    with contextlib.ExitStack() as stack:
        chosen.value.apply(lambda action: stack.callback(action))
        stack.pop_all()
    return Restored(chosen.step, chosen.value.train.get("extra"), chosen.path, chosen.skipped)
