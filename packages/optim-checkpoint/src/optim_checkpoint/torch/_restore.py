"""Restoring a torch training run: everything is read and verified before anything changes."""

import contextlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from optim_checkpoint._casts import SAFE, Casting, is_float
from optim_checkpoint._collect import Staging, read_staged
from optim_checkpoint._data import Data, Stateful
from optim_checkpoint._errors import (
    CheckpointWarning,
    CorruptCheckpointError,
    IncompatibleCheckpointError,
    TornRestoreError,
    shown,
)
from optim_checkpoint._folder import StrPath
from optim_checkpoint._generation import Generation
from optim_checkpoint._json import as_array, as_object
from optim_checkpoint._partial import Only, Rename, Report, Selection
from optim_checkpoint._peers import Team
from optim_checkpoint._place import Place
from optim_checkpoint._select import Skipped, choose
from optim_checkpoint.torch import _rng
from optim_checkpoint.torch._assign import Undo
from optim_checkpoint.torch._direct import Direct
from optim_checkpoint.torch._from_jax import convert_optimizer, settle_steps
from optim_checkpoint.torch._hyper import Shared
from optim_checkpoint.torch._memory import check_surroundings
from optim_checkpoint.torch._model import ModelPlan, plan_model
from optim_checkpoint.torch._named import (
    ALONE,
    by_name,
    key,
    key_differences,
    keys_of,
    name_in,
    one_model,
)
from optim_checkpoint.torch._names import parameter_names
from optim_checkpoint.torch._optimizer import decode_optimizer, live_parameters
from optim_checkpoint.torch._optimizer_plan import OptimizerPlan, plan_optimizer
from optim_checkpoint.torch._optimizer_undo import family_of, loads_itself
from optim_checkpoint.torch._processes import is_sharded, readers
from optim_checkpoint.torch._save import Models, Optimizers, Statefuls, statefuls_of
from optim_checkpoint.torch._scheduler import regroup
from optim_checkpoint.torch._stateful import load_stateful, stateful_differences
from optim_checkpoint.torch._tensors import DTYPES, TorchStaging


@dataclass(frozen=True)
class Restored:
    """What a restore found beside what it loaded in place.

    Attributes:
        step: The step that was restored.
        extra: What `save` got as `extra`, or None.
        path: The generation it came from.
        skipped: Newer generations that were damaged, with the reasons.
        report: What was loaded, missing, unexpected, left out, renamed and cast, under "model",
            "optimizer" and, of several, "optimizer/NAME".
    """

    step: int
    extra: dict[str, Any] | None
    path: Place
    skipped: tuple[Skipped, ...]
    report: Mapping[str, Report] = field(default_factory=dict)


@dataclass
class _Target:
    model: torch.nn.Module | None
    optimizers: dict[str, torch.optim.Optimizer]
    statefuls: dict[str, Stateful]
    rng: bool
    assigns: bool
    selection: Callable[[], Selection]
    direct: Direct | None


@dataclass
class _Plan:
    target: _Target
    model: ModelPlan | None
    optimizers: dict[str, OptimizerPlan]
    train: dict[str, Any]
    generators: int

    def apply(self, undo: Undo) -> None:
        """Load everything that can still fail; `undo` receives what takes it back."""
        # Registered first, taken back last: what loads itself may draw, there and back.
        _rng.keep(undo)
        # Before the optimizers, whose state goes where their parameters are.
        if self.model is not None:
            self.model.assign(undo)
        first: Shared = {}
        for plan in self.optimizers.values():
            plan.apply(undo, first)
        # Two may share a tensor: each is read after all were loaded.
        for plan in self.optimizers.values():
            plan.check()
        for name, stateful in self.target.statefuls.items():
            load_stateful(name, stateful, self.train[name], undo)
        if self.model is not None:
            self.model.apply(undo)
        if self.target.rng and "rng" in self.train:
            _rng.restore(self.train["rng"])

    def finish(self) -> None:
        """Do what cannot fail and is not taken back."""
        if self.model is not None:
            self.model.finish()

    def report(self) -> dict[str, Report]:
        """Return what was loaded, by section."""
        fits = {key("optimizer", name): plan.saved.fit for name, plan in self.optimizers.items()}
        if self.model is not None:
            fits = {"model": self.model.fit, **fits}
        return {name: fit.report() for name, fit in fits.items()}


def _section(generation: Generation, name: str) -> object:
    sections = generation.manifest.sections
    if name not in sections:
        raise IncompatibleCheckpointError(
            [f"the checkpoint of step {generation.name.step} holds no {name}"]
        )
    return sections[name]


def _own(fields: dict[str, object], rank: int) -> tuple[dict[str, object], int, int]:
    """Return what one process has for itself, how many have, and how many have generators."""
    ranks = as_array(fields.get("ranks"))
    if ranks is None:
        return fields, 1, int("rng" in fields)
    stored = [as_object(own) or {} for own in ranks]
    mine = stored[rank] if rank < len(stored) else {}
    return mine, len(stored), sum("rng" in own for own in stored)


def _read(generation: Generation, target: _Target, team: Team) -> _Plan:
    if target.direct is not None:
        target.direct.begin()
    staged = {
        part: TorchStaging(Staging.of(generation, part), target.direct)
        for part in ("model", "optim", "train")
    }
    differences: list[str] = []
    selection = target.selection()
    framework = generation.manifest.framework.get("name")
    if framework not in ("torch", "jax"):
        raise IncompatibleCheckpointError([f"it was saved by {shown(framework)}, not by torch"])
    model = None
    if target.model is not None:
        section = _section(generation, "model")
        model = plan_model(
            generation,
            section,
            target.model,
            staged["model"],
            differences,
            selection,
            assigns=target.assigns,
        )
    steps: list[tuple[dict[str, Any], torch.Tensor]] = []
    plans: dict[str, OptimizerPlan] = {}
    there = key_differences(
        "optimizer", generation.name.step, generation.manifest.sections, target.optimizers
    )
    for name, optimizer in target.optimizers.items() if not there else ():
        section = _section(generation, key("optimizer", name))
        names = parameter_names(optimizer, target.model).groups
        live = live_parameters(optimizer, names)
        if framework == "torch":
            shards = generation.shards("optim")
            # Code of its own may copy what it is given, after what it had.
            itself = any(map(loads_itself, family_of(optimizer)))
            state = {} if itself or selection.partial else optimizer.state
            saved = decode_optimizer(section, staged["optim"], live, shards, selection, state)
        else:
            if not selection.plain:
                differences.append(
                    "the optimizer was saved by jax: it is restored whole or not at all, without "
                    "strict=False, rename, only and cast"
                )
            saved, counts = convert_optimizer(
                section, optimizer, names, staged["optim"], differences
            )
            steps += counts
            saved = replace(saved, fit=selection.fit("optimizer parameter", saved.params, live))
        assigned = {} if model is None else model.assigned_dtypes()
        plans[name] = plan_optimizer(optimizer, names, saved, selection, assigned)
        where = f"optimizer {name}: " if name != ALONE else ""
        differences += [f"{where}{difference}" for difference in plans[name].differences]
    differences += there
    differences += selection.unused()
    train, generators = _plan_train(generation, target, plans, staged["train"], team, differences)
    if differences:
        raise IncompatibleCheckpointError(differences)
    if target.direct is not None:
        target.direct.write()
    read_staged(
        generation, *(item.staging for item in staged.values()), rank=team.rank, size=team.size
    )
    settle_steps(steps)
    for plan in plans.values():
        plan.settle()
    return _Plan(target, model, plans, train, generators if framework == "torch" else 0)


def _plan_train(
    generation: Generation,
    target: _Target,
    plans: dict[str, OptimizerPlan],
    staging: TorchStaging,
    team: Team,
    differences: list[str],
) -> tuple[dict[str, Any], int]:
    """Return what goes into schedulers and the like, and how many processes' generators exist."""
    fields = as_object(_section(generation, "train"))
    if fields is None:
        raise CorruptCheckpointError(str(generation.name), "the train section is malformed")
    own, processes, generators = _own(fields, team.rank)
    stored = {**fields, **own}
    wanted = [*target.statefuls, "extra", *(["rng"] if target.rng and "rng" in own else [])]
    kinds = ["scheduler", "scaler", "data"]
    if keys_of("data", target.statefuls) and processes not in (1, team.size):
        differences.append(
            f"the data of {processes} processes were saved, {team.size} are here: restore without "
            "data, and begin where you choose"
        )
        kinds.remove("data")
        wanted = [name for name in wanted if not keys_of("data", [name])]
    train: dict[str, Any] = {}
    framework = generation.manifest.framework.get("name")
    if framework == "torch":
        train = {name: staging.decode(stored[name]) for name in wanted if name in stored}
    for what in kinds:
        here = [name_in(what, each) for each in keys_of(what, target.statefuls)]
        there = stored if framework == "torch" else ()
        differences += key_differences(what, generation.name.step, there, here)
    for name, stateful in target.statefuls.items():
        if name not in train:
            continue
        plan = _plan_of(stateful, name, plans)
        if plan is not None and not differences:
            train[name] = regroup(train[name], plan.origins, len(plan.saved.groups))
        if plan is not None and plan.new:
            differences.append(
                f"the {name} has no rates in the checkpoint for group {plan.new[0]}, which has no "
                f"parameter that is loaded: restore without the {name}"
            )
        differences += stateful_differences(name, train[name], stateful)[0]
    return train, generators


def _plan_of(
    scheduler: Stateful, name: str, plans: dict[str, OptimizerPlan]
) -> OptimizerPlan | None:
    """Return the plan of the optimizer that a scheduler sets, or of the one with its name."""
    optimizer = getattr(scheduler, "optimizer", None)
    for plan in plans.values():
        if plan.optimizer is optimizer:
            return plan
    return plans.get(name_in("scheduler", name)) if keys_of("scheduler", [name]) else None


def _warn_of_values(plan: _Plan, *, assign: bool) -> None:
    model = plan.target.model
    if model is None or plan.model is None:
        return
    if beyond := plan.model.beyond():
        warnings.warn(
            f"cast: {_listed(beyond)} had values beyond the range of the dtype they are in now",
            CheckpointWarning,
            stacklevel=3,
        )
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    left = [name for name, tensor in tensors.items() if tensor.is_meta] if assign else []
    if left:
        warnings.warn(
            f"{_listed(left)} got nothing from the checkpoint and stays on the meta device: build "
            "it anew, as what is registered with persistent=False is",
            CheckpointWarning,
            stacklevel=3,
        )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


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
    model: Models = None,
    optimizer: Optimizers = None,
    scheduler: Statefuls = None,
    scaler: Statefuls = None,
    data: Data = None,
    rng: bool = True,
    strict: bool = True,
    rename: Rename | None = None,
    only: Only | None = None,
    cast: Literal["safe"] | torch.dtype | None = None,
    assign: bool = False,
    staging: bool = True,
    process_group: Any = None,
) -> Restored:
    """Restore a training run in place, all or nothing.

    The whole generation is read and every digest compared; then names, shapes, dtypes and
    hyperparameters are compared with what is live; only then does anything change. The values are
    copied into the model's own tensors; what a module keeps beside its parameters and buffers, or
    loads by code or hooks of its own, goes through its `load_state_dict` and is read back. An
    optimizer's state is matched by parameter name and keeps its saved dtypes; state and
    hyperparameters are read back, and so is what schedulers and scalers were given. The generators
    are set last.

    Several models, optimizers, schedulers or scalers are given as a mapping, under the names they
    were saved with, and all of them.

    A checkpoint of JAX is read too, where the parameters have the same dotted names and shapes and
    the optimizers are a pair (AdamW, sign momentum, SGD with momentum); hyperparameters stay the
    live ones, and its `extra` and its keys are not read.

    Where the live model or optimizer has DTensors, every process makes this call and reads the
    shards it holds, from a checkpoint of any mesh or of one process; together they verify all of
    it, take the same generation, and change nothing where one of them fails. Process n gets the
    generators of process n; where their numbers differ, a `CheckpointWarning` says so.

    A part of a checkpoint is loaded with `strict`, `rename`, `only` and `cast`, which go for the
    model and for the optimizer's state by parameter. Shapes must agree all the same. What is not
    loaded keeps what it has, a parameter's optimizer state included, and is listed in the result's
    `report`; leave `optimizer` out for a new start of it.

    Args:
        path: The folder of the run.
        step: The step; None takes the newest generation that verifies, with a
            `CheckpointWarning` for each one skipped.
        model: The module to load into, or several by name, if wanted.
        optimizer: The optimizer to load into, or several by name, if wanted.
        scheduler: The scheduler to load into, or several by name, if wanted.
        scaler: The GradScaler to load into, or several by name, if wanted.
        data: The data loader or sampler to load into, or several by name, if wanted.
        rng: Whether to set the global generators of torch, NumPy and Python, where stored.
        strict: Whether names that only one side has are an error.
        rename: Live names by saved ones, where ``{"encoder": "backbone.encoder"}`` goes for all
            that starts with ``encoder.`` and an empty new name takes a prefix away; or a function
            of the saved name.
        only: Patterns of live names as in a shell, for instance ``["backbone.*"]``; nothing else is
            loaded. Those that start with "!" leave out, as ``"!*.head.*"``.
        cast: None wants the saved dtypes; "safe" converts to the live dtype where that holds every
            value; a dtype converts floating-point values to it, with rounding, for live tensors
            that have it. State in a parameter's dtype is converted with it.
        assign: Give the parameters and buffers the memory that was read, in the live dtype or in
            `cast`: no second copy is made, and a model on the meta device gets memory on the CPU.
            They stay the objects they are, so an optimizer may have been built before.
        staging: Whether everything is read and verified in memory of its own before anything
            changes, a copy of the state. False reads plain CPU tensors, shards among them, into the
            live ones and compares the digests meanwhile: no copy, and less time. Names, shapes and
            dtypes are compared before; damage is still found, and an older generation read over
            it. Where that leaves live tensors half written, a `TornRestoreError` says so.
        process_group: The processes that restore together; None is the default group where
            something is sharded, and this process alone where nothing is.

    Returns:
        The step, the extra values, the path, what was skipped and the report.

    Raises:
        CheckpointNotFoundError: If there is no such generation.
        CorruptCheckpointError: If every candidate is damaged.
        CheckpointReadError: If the generation cannot be read; no older one is taken for it.
        IncompatibleCheckpointError: With every difference between checkpoint and live objects; also
            where a module or an optimizer does not take what it is given, and then everything is
            as it was.
        UnsupportedStateError: If the model or the surroundings have FakeTensors, or others that
            only stand for a tensor.
        TornRestoreError: Without staging, where it failed after live tensors had been written.
        TypeError: If an argument is neither of its kind nor a mapping of names to such.
        ValueError: If `cast` is nothing that can be converted to.
    """
    check_surroundings("restore")
    casting = _casting(cast)

    def selection() -> Selection:
        return Selection(strict=strict, rename=rename, only=only, casting=casting)

    # What is wrong with the arguments is no matter of the checkpoint.
    selection()
    optimizers, statefuls = by_name("optimizer", optimizer), statefuls_of(scheduler, scaler, data)
    direct = None if staging else Direct()
    target = _Target(one_model(model), optimizers, statefuls, rng, assign, selection, direct)
    team = readers(process_group, sharded=is_sharded(target.model, optimizers))
    try:
        chosen = choose(path, step, lambda generation: _read(generation, target, team), team)
        _apply(chosen.value, team)
    except Exception as error:
        if direct is not None and direct.written:
            raise TornRestoreError(
                f"the restore failed after live tensors had been written ({error}): they hold "
                "parts of what was read; restore again before they are used"
            ) from error
        raise
    if direct is not None and direct.left():
        raise TornRestoreError(
            f"step {chosen.step} was restored after a damaged one that has other tensors, which "
            "had been written; restore again before they are used"
        )
    chosen.value.finish()
    _warn_of_values(chosen.value, assign=assign)
    if rng:
        _warn_of_generators(chosen.value.generators, team)
    return Restored(
        chosen.step,
        chosen.value.train.get("extra"),
        chosen.path,
        chosen.skipped,
        chosen.value.report(),
    )


def _apply(plan: _Plan, team: Team) -> None:
    with contextlib.ExitStack() as stack:

        def apply() -> dict[str, object]:
            plan.apply(lambda action: stack.callback(action))
            return {}

        team.agree(apply)
        stack.pop_all()


def _casting(cast: object) -> Casting:
    rule = DTYPES.get(cast) if isinstance(cast, torch.dtype) else cast
    named = isinstance(cast, torch.dtype) and rule is not None and is_float(str(rule))
    if cast is not None and cast != SAFE and not named:
        raise ValueError(f'cast is {cast!r}; it must be None, "safe" or a floating-point dtype')
    return Casting(None if rule is None else str(rule))
