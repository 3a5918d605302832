"""From what the user asks for to a plan: names, variants, tiers.

An optimizer is written `name`, or `name,hyperparameter=value,...` for a variant, or
`module:factory` or `file.py:factory` for one that lies elsewhere. A variant's learning rate moves
the centre of its grid, because the learning rate is what every optimizer is tuned over; its
`schedule` is that of its runs.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from optim_bench.errors import BenchError, UsageError, unknown_name
from optim_bench.executors.requirements import installed, require
from optim_bench.executors.train import try_factory
from optim_bench.optimizers import (
    OPTIMIZERS,
    OPTIONAL,
    FactoryError,
    OptimizerInfo,
    check_call,
    discover,
    resolve,
)
from optim_bench.protocol import BASELINE, BUDGET_TIER, TIERS, Budget, Cell, Plan
from optim_bench.protocol.points import check_search, parse_search, points_of
from optim_bench.records import FRAMEWORKS, SCHEDULES, Hyperparameter
from optim_bench.references import is_reference
from optim_bench.results.source import source_of
from optim_bench.tasks import Entry, find_task
from optim_bench.tasks.built_in import WORKLOADS
from optim_bench.tasks.data import DamagedDataError

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
        workloads: names of built-in workloads, or references to tasks.
        optimizers: names, variants or references, as the module describes them.
        frameworks: which frameworks take part, where the tasks have them.
        seeds: fresh seeds per cell, or None for the tier's number.
        exploratory: those of the optimizers that take part without a test.
        design: runs per cell in place of the tier's.
        share: share of its horizon that each workload is trained for.
        search: what is searched beside the learning rate, as `parse_search` reads it.
    """

    tier: str = "quick"
    workloads: Sequence[str] = ()
    optimizers: Sequence[str] = ()
    frameworks: Sequence[str] = FRAMEWORKS
    seeds: int | None = None
    exploratory: Sequence[str] = ()
    design: Budget | None = None
    share: float = 1.0
    search: Sequence[str] = ()


@dataclass(frozen=True)
class _Choice:
    name: str
    label: str
    info: OptimizerInfo
    hyperparameters: Mapping[str, Hyperparameter]
    schedule: str | None


def check_frameworks(request: Request, executor: str = "process") -> None:
    """Check that what a request names by itself is installed, before anything of it is imported.

    Raises:
        MissingExtraError: something is missing; the message names all of it.
    """
    # A user's file imports its own framework; what else it needs shows in the plan.
    built_in = all(name in WORKLOADS for name in request.workloads)
    require(request.frameworks if built_in else (), executor=executor)


def build_plan(request: Request) -> Plan:
    """Return the plan for a request.

    Raises:
        UsageError: a name is unknown, a hyperparameter out of range, or a count out of range.
    """
    if request.tier not in TIERS:
        raise unknown_name("tier", request.tier, TIERS)
    try:
        budget = request.design or TIERS[request.tier]
        if request.seeds is not None:
            budget = dataclasses.replace(budget, fresh_seeds=request.seeds)
        if request.search:
            budget = dataclasses.replace(budget, search=parse_search(request.search))
        names = request.workloads or DEFAULT_WORKLOADS
        entries = {name: find_task(name) for name in names}
        first: dict[str, str] = {}
        for reference, entry in entries.items():
            if (other := first.setdefault(entry.name, reference)) != reference:
                raise UsageError(
                    f"{other} and {reference} are both called {entry.name}; give one of them "
                    "another name=..."
                )
        frameworks = _frameworks(request, entries)
        choices = {f: _choices(request.optimizers, frameworks, f) for f in frameworks}
        everyone = [choice for found in choices.values() for choice in found]
        check_search(budget, [choice.info for choice in everyone])
        cells = [
            _cell(request, budget, reference, entry, choice)
            for reference, entry in entries.items()
            for framework in frameworks
            if framework in entry.frameworks
            for choice in choices[framework]
        ]
        apart = {BASELINE, *request.exploratory}
        return Plan(
            tier=request.tier if request.design is None else BUDGET_TIER,
            budget=budget,
            cells=tuple(cells),
            # Whatever was named before the first run is a test of what it was named for. One that
            # spells out the defaults of another has the other's runs, and is no second test.
            family=tuple(c.name for c in _apart(cells) if c.label not in apart),
            titles={f"{c.info.framework}/{c.label}": _title(c) for c in everyone},
            families={f"{c.info.framework}/{c.label}": c.info.family for c in everyone},
            workloads={entry.name: entry.facts() for entry in entries.values()},
        )
    except ValueError as error:
        raise UsageError(str(error)) from error


def extend_plan(plan: Plan, optimizers: Sequence[str]) -> Plan:
    """Return a plan with further optimizers wherever it already compares something.

    Their tests come after the first results: they are corrected together with the family, whose own
    tests stay what they were, and are called exploratory.

    Args:
        plan: of a comparison that may have results.
        optimizers: names, variants or references.

    Raises:
        UsageError: a name is unknown, or was in the plan from the start.
    """
    try:
        frameworks = list(dict.fromkeys(cell.framework for cell in plan.cells))
        places = [cell for cell in plan.cells if cell.label == plan.baseline]
        choices = {
            f: [c for c in _choices(optimizers, frameworks, f) if c.label != BASELINE]
            for f in frameworks
        }
        new = [
            dataclasses.replace(
                _cell(
                    Request(),
                    plan.budget,
                    place.task or place.workload,
                    find_task(_found_by(place)),
                    choice,
                ),
                steps=place.steps,
                schedule=choice.schedule or place.schedule,
            )
            for place in places
            for choice in choices[place.framework]
        ]
        # An addition that was interrupted goes on when its command is repeated.
        known = {cell.name: cell.label for cell in plan.cells if cell.name not in plan.added}
        if named := sorted({known[cell.name] for cell in new if cell.name in known}):
            raise UsageError(
                f"{', '.join(named)}: in this comparison already; nothing is to be added"
            )
        new = [cell for cell in new if cell.name not in plan.added]
        everyone = [choice for found in choices.values() for choice in found]
        return dataclasses.replace(
            plan,
            cells=(*plan.cells, *new),
            added=(*plan.added, *(cell.name for cell in new)),
            titles={
                **plan.titles,
                **{f"{c.info.framework}/{c.label}": _title(c) for c in everyone},
            },
            families={
                **plan.families,
                **{f"{c.info.framework}/{c.label}": c.info.family for c in everyone},
            },
        )
    except ValueError as error:
        raise UsageError(str(error)) from error


def _apart(cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells without those whose runs are those of one before, or of the baseline."""
    first: dict[str, Cell] = {}
    for cell in sorted(cells, key=lambda cell: cell.label != BASELINE):
        first.setdefault(cell.spec(cell.centre, 0).key(), cell)
    return [cell for cell in cells if cell in first.values()]


def _frameworks(request: Request, entries: Mapping[str, Entry]) -> list[str]:
    """Return the frameworks that were asked for and that every task has."""
    found = [f for f in request.frameworks if all(f in e.frameworks for e in entries.values())]
    if not found:
        has = "; ".join(f"{e.name} is for {' and '.join(e.frameworks)}" for e in entries.values())
        raise UsageError(
            f"no framework is left of {', '.join(request.frameworks)}: {has}; compare them apart"
        )
    return found


def _found_by(cell: Cell) -> str:
    return cell.task or cell.workload


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
            if source_of(info, cell.optimizer, find_task(_found_by(cell))) != cell.source:
                raise BenchError(
                    f"the source of {_sources(cell)} is not what it was when this comparison was "
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
        workload = WORKLOADS.get(name)
        if workload is not None and workload.files:
            try:
                workload.arrays(data_dir)
            except (ValueError, DamagedDataError, OSError) as error:
                raise BenchError(f"{name}: {error}") from error


def check_factories(plan: Plan, data_dir: Path | None) -> None:
    """Make every optimizer from outside once, on the first task it meets, before anything trains.

    Raises:
        BenchError: one is no optimizer; the message says what to write.
    """
    first = {(cell.optimizer, cell.label, cell.framework): cell for cell in reversed(plan.cells)}
    for cell in reversed(first.values()):
        info = resolve(cell.optimizer, cell.framework)
        if info.key in OPTIMIZERS or info.key in OPTIONAL:
            continue
        task = find_task(_found_by(cell)).build(cell.framework, data_dir)
        try:
            try_factory(task, info, cell.hyperparameters)
        except FactoryError as error:
            raise BenchError(str(error)) from error


def _sources(cell: Cell) -> str:
    return cell.optimizer if cell.task is None else f"{cell.optimizer} or of {cell.task}"


def _choices(optimizers: Sequence[str], frameworks: Sequence[str], framework: str) -> list[_Choice]:
    """Resolve the optimizers that are named and the framework has, the baseline last."""
    asked = optimizers or DEFAULT_OPTIMIZERS[framework]
    choices: dict[str, _Choice] = {}
    for text in [*asked, BASELINE]:
        name, hyperparameters = parse_optimizer(text)
        if not _offered(name, framework):
            if not any(_offered(name, other) for other in frameworks):
                raise _unknown_optimizer(name, frameworks)
            continue
        info = resolve(name, framework)
        if info.open_parameters and len(frameworks) > 1:
            raise UsageError(
                f"{name} is a plain factory, which may be for JAX or for PyTorch; say which: "
                "--framework jax or --framework torch"
            )
        given = dict(hyperparameters)
        schedule = None if "schedule" in info.parameters else given.pop("schedule", None)
        if schedule is not None and (schedule not in SCHEDULES or info.schedule is not None):
            choose = (
                f"it has a schedule of its own, {info.schedule}"
                if info.schedule
                else (f"choose from {', '.join(SCHEDULES)}")
            )
            raise UsageError(f"{name}: schedule is {schedule!r}; {choose}")
        merged = info.validate(given)
        if callable(info.factory):
            check_call(name, framework, info.factory, merged)
        label = ",".join([info.name, *(f"{k}={v}" for k, v in hyperparameters.items())])
        # A declaration may have a name of its own, by which no worker could find it.
        found = name if is_reference(name) else info.name
        choices.setdefault(label, _Choice(found, label, info, merged, schedule or info.schedule))
    if set(choices) == {BASELINE} and BASELINE not in optimizers:
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
    try:
        resolve(name, framework)
    except ValueError:
        return False
    return True


def _unknown_optimizer(name: str, frameworks: Sequence[str]) -> UsageError:
    if is_reference(name):
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


def _cell(request: Request, budget: Budget, reference: str, entry: Entry, choice: _Choice) -> Cell:
    declared = choice.info.parameters["learning_rate"]
    centre = choice.hyperparameters["learning_rate"]
    if isinstance(centre, bool) or not isinstance(centre, (int, float)):
        raise ValueError(f"{choice.label}: learning_rate is {centre!r}; it has to be a number")  # noqa: TRY004
    # An open bound: the grid must never touch it.
    low = math.nextafter(declared.low or 0.0, math.inf) if declared.low_open else declared.low
    low = low or 0.0
    high = MAX_LEARNING_RATE if declared.high is None else declared.high
    reach = 10 ** (budget.grid_points // 2 / 2)
    span = max(low, centre / reach), min(high, centre * reach)
    return Cell(
        workload=entry.name,
        workload_version=entry.version or 0,
        framework=choice.info.framework,
        optimizer=choice.name,
        label=choice.label,
        hyperparameters={**choice.hyperparameters, "learning_rate": float(centre)},
        centre=float(centre),
        low=low,
        high=high,
        steps=max(1, round(request.share * entry.horizon(request.tier))),
        schedule=choice.schedule or entry.schedule_name,
        source=source_of(choice.info, choice.name, entry),
        task=None if reference in WORKLOADS else reference,
        judged=entry.judged,
        larger_is_better=entry.larger_is_better,
        points=points_of(choice.info, choice.hyperparameters, span, budget),
    )


# A rate beyond this trains nothing here; the grid has to end somewhere.
MAX_LEARNING_RATE = 1e3


def _title(choice: _Choice) -> str:
    """Return the title with everything that qualifies it in brackets, fit for use in a sentence."""
    name, comma, rest = choice.info.title.partition(", ")
    settings = choice.label.partition(",")[2].replace(",", ", ")
    notes = "; ".join(note for note in (rest if comma else "", settings) if note)
    return f"{name} ({notes})" if notes else name
