"""From what the user asks for to a plan: names, variants, tiers.

An optimizer is written `name`, or `name,hyperparameter=value,...` for a variant, or
`module:factory` for one that is installed elsewhere. A variant's learning rate moves the centre of
its grid, because the learning rate is what every optimizer is tuned over.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from optim_bench.data import DamagedDataError
from optim_bench.errors import BenchError, UsageError, unknown_name
from optim_bench.optimizers import OPTIMIZERS, OPTIONAL, OptimizerInfo, discover, resolve
from optim_bench.protocol import BASELINE, TIERS, Cell, Plan
from optim_bench.records import FRAMEWORKS, Hyperparameter
from optim_bench.requirements import installed, require
from optim_bench.source import source_of
from optim_bench.workloads import WORKLOADS, Workload

DEFAULT_WORKLOADS = ("digits-cnn", "diamonds-mlp")
DEFAULT_OPTIMIZERS: Mapping[str, tuple[str, ...]] = {
    "jax": ("stam", "stam_lite", BASELINE),
    "torch": ("stac", BASELINE),
}


@dataclass(frozen=True)
class Request:
    """What the user asks for; empty sequences mean the main job's choice.

    Args:
        tier: a name in `TIERS`.
        workloads: registry names.
        optimizers: names, variants or references, as the module describes them.
        frameworks: which frameworks take part.
        seeds: fresh seeds per cell, or None for the tier's number.
    """

    tier: str = "quick"
    workloads: Sequence[str] = ()
    optimizers: Sequence[str] = ()
    frameworks: Sequence[str] = FRAMEWORKS
    seeds: int | None = None


@dataclass(frozen=True)
class _Choice:
    name: str
    label: str
    info: OptimizerInfo
    hyperparameters: Mapping[str, Hyperparameter]


def build_plan(request: Request) -> Plan:
    """Return the plan for a request.

    Raises:
        UsageError: a name is unknown, a hyperparameter out of range, or a count out of range.
    """
    if request.tier not in TIERS:
        raise unknown_name("tier", request.tier, TIERS)
    try:
        budget = TIERS[request.tier]
        if request.seeds is not None:
            budget = dataclasses.replace(budget, fresh_seeds=request.seeds)
        workloads = [_workload(name) for name in request.workloads or DEFAULT_WORKLOADS]
        choices = [c for framework in request.frameworks for c in _choices(request, framework)]
        cells = [_cell(request, w, choice) for w in workloads for choice in choices]
        ours = {c.label for c in choices if c.info.family == "ours"}
        real = {w.name for w in workloads if w.kind == "real"}
        return Plan(
            tier=request.tier,
            budget=budget,
            cells=tuple(cells),
            family=tuple(c.name for c in cells if c.label in ours and c.workload in real),
            titles={f"{c.info.framework}/{c.label}": _title(c) for c in choices},
            families={f"{c.info.framework}/{c.label}": c.info.family for c in choices},
            workloads={w.name: _facts(w) for w in workloads},
        )
    except ValueError as error:
        raise UsageError(str(error)) from error


def check_installed(plan: Plan, executor: str) -> None:
    """Check that all that a plan needs is installed: frameworks, the executor, optimizers.

    Raises:
        BenchError: an optimizer of the plan is unknown here.
        MissingExtraError: something is missing; the message names all of it.
    """
    names = {(cell.optimizer, cell.framework): None for cell in plan.cells}
    frameworks = list(dict.fromkeys(framework for _, framework in names))
    # What a plugin's module needs shows only when it is imported, and needs the framework itself.
    require(
        frameworks,
        executor=executor,
        optimizers=[info for info in OPTIMIZERS.values() if (info.name, info.framework) in names],
    )
    try:
        infos = {key: resolve(*key) for key in names}
        for cell in plan.cells:
            info = infos[cell.optimizer, cell.framework]
            if source_of(info, cell.optimizer, _workload(cell.workload)) != cell.source:
                raise BenchError(
                    f"the source of {cell.optimizer} is not what it was when this comparison was "
                    "planned; start another one: optim-bench run --output NEW_FOLDER"
                )
    except ValueError as error:
        raise BenchError(str(error)) from error
    require(frameworks, executor=executor, optimizers=infos.values())


def check_data(plan: Plan, data_dir: Path | None) -> None:
    """Read the files that the user has to bring, before anything trains.

    Raises:
        BenchError: one is missing or damaged; the message says which, and what to do.
    """
    for name in plan.workloads:
        workload = _workload(name)
        if workload.files:
            try:
                workload.task(data_dir)
            except (ValueError, DamagedDataError, OSError) as error:
                raise BenchError(f"{name}: {error}") from error


def _workload(name: str) -> Workload:
    if name not in WORKLOADS:
        raise unknown_name("workload", name, WORKLOADS)
    return WORKLOADS[name]


def _choices(request: Request, framework: str) -> list[_Choice]:
    """Resolve the optimizers that the request names and the framework has, the baseline last."""
    asked = request.optimizers or DEFAULT_OPTIMIZERS[framework]
    choices: dict[str, _Choice] = {}
    for text in [*asked, BASELINE]:
        name, hyperparameters = parse_optimizer(text)
        if not _offered(name, framework):
            if not any(_offered(name, other) for other in request.frameworks):
                raise _unknown_optimizer(name, request.frameworks)
            continue
        info = resolve(name, framework)
        if info.open_parameters and len(request.frameworks) > 1:
            raise UsageError(
                f"{name} is a plain factory, which may be for JAX or for PyTorch; say which: "
                "--framework jax or --framework torch"
            )
        merged = info.validate(hyperparameters)
        label = ",".join([info.name, *(f"{k}={v}" for k, v in hyperparameters.items())])
        # A declaration may have a name of its own, by which no worker could find it.
        found = name if ":" in name else info.name
        choices.setdefault(label, _Choice(found, label, info, merged))
    if set(choices) == {BASELINE} and BASELINE not in request.optimizers:
        return []
    baseline = choices.pop(BASELINE)
    return [*choices.values(), baseline]


def parse_optimizer(text: str) -> tuple[str, dict[str, Hyperparameter]]:
    """Split `name,hyperparameter=value,...`.

    Values are read as JSON where they are JSON (numbers, true, false, null) and as text otherwise.

    Raises:
        ValueError: a part has no `=`, or a value is neither a finite number nor a text.

    Example:
        >>> parse_optimizer("adamw,b1=0.95,eps=1e-6")
        ('adamw', {'b1': 0.95, 'eps': 1e-06})
    """
    name, *parts = text.split(",")
    hyperparameters: dict[str, Hyperparameter] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if not (key and equals and value):
            raise ValueError(f"{text!r} has a part {part!r}; write name,hyperparameter=value")
        if key in hyperparameters:
            raise ValueError(f"{text!r} gives {key} twice; leave one of them away")
        hyperparameters[key] = _value(key, value)
    return name, hyperparameters


def _value(key: str, text: str) -> Hyperparameter:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return text
    except ValueError:  # Python reads no number of so many digits
        value = math.inf
    if isinstance(value, (list, dict)):
        raise ValueError(f"{key} is {text}; it has to be a number, true, false, null or a text")  # noqa: TRY004
    if isinstance(value, (int, float)) and not _is_finite(value):
        raise ValueError(f"{key} is {text[:40]}; it has to be a finite number")
    return value


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the range of a float
        return False


def _offered(name: str, framework: str) -> bool:
    if ":" in name:
        try:
            resolve(name, framework)
        except ValueError:
            return False
        return True
    key = f"{framework}/{name}"
    return key in OPTIMIZERS or key in OPTIONAL or key in discover().optimizers


def _unknown_optimizer(name: str, frameworks: Sequence[str]) -> UsageError:
    if ":" in name:
        try:
            resolve(name, frameworks[0])
        except ValueError as error:
            return UsageError(str(error))
    everything = {**all_optimizers(), **OPTIONAL}
    elsewhere = [info.framework for info in everything.values() if info.name == name]
    if elsewhere:
        return UsageError(
            f"{name} is an optimizer of {elsewhere[0]}, not of {' or '.join(frameworks)}; use "
            f"--framework {elsewhere[0]}"
        )
    known = {info.name for info in all_optimizers().values() if info.framework in frameworks}
    return unknown_name(f"{' or '.join(frameworks)} optimizer", name, known)


def all_optimizers() -> dict[str, OptimizerInfo]:
    """Return the optimizers that can run here, by `framework/name`.

    These are the registered ones, those whose distribution is installed, and those that installed
    packages declare.
    """
    here = {key: info for key, info in OPTIONAL.items() if installed(str(info.requires))}
    return {**OPTIMIZERS, **here, **discover().optimizers}


def absent_optimizers() -> list[OptimizerInfo]:
    """Return the optimizers that are known and whose distribution is not installed."""
    return [info for info in OPTIONAL.values() if not installed(str(info.requires))]


def _cell(request: Request, workload: Workload, choice: _Choice) -> Cell:
    declared = choice.info.parameters["learning_rate"]
    centre = choice.hyperparameters["learning_rate"]
    if isinstance(centre, bool) or not isinstance(centre, (int, float)):
        raise ValueError(f"{choice.label}: learning_rate is {centre!r}; it has to be a number")  # noqa: TRY004
    # An open bound: the grid must never touch it.
    low = math.nextafter(declared.low or 0.0, math.inf) if declared.low_open else declared.low
    return Cell(
        workload=workload.name,
        workload_version=workload.version,
        framework=choice.info.framework,
        optimizer=choice.name,
        label=choice.label,
        hyperparameters={**choice.hyperparameters, "learning_rate": float(centre)},
        centre=float(centre),
        low=low or 0.0,
        high=MAX_LEARNING_RATE if declared.high is None else declared.high,
        steps=workload.steps[request.tier],
        schedule=choice.info.schedule or workload.schedule,
        source=source_of(choice.info, choice.name, workload),
    )


# A rate beyond this trains nothing here; the grid has to end somewhere.
MAX_LEARNING_RATE = 1e3


def _title(choice: _Choice) -> str:
    """Return the title with everything that qualifies it in brackets, fit for use in a sentence."""
    name, comma, rest = choice.info.title.partition(", ")
    settings = choice.label.partition(",")[2].replace(",", ", ")
    notes = "; ".join(note for note in (rest if comma else "", settings) if note)
    return f"{name} ({notes})" if notes else name


def _facts(workload: Workload) -> dict[str, object]:
    target = workload.target
    return {
        "version": workload.version,
        "title": workload.title,
        "kind": workload.kind,
        "loss": workload.loss,
        "batch": workload.batch,
        "metrics": list(workload.metrics),
        "licence": workload.licence,
        "target": None if target is None else dataclasses.asdict(target),
    }
