"""The one call: from a task and optimizers to verdicts. The command line is a layer over it."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from optim_bench import optimizers as registry
from optim_bench.cli.carry_out import (
    Execution,
    carry_out,
    make_workers,
    name_strangers,
    stoppable,
)
from optim_bench.cli.comparison import Comparison
from optim_bench.errors import BenchError, UsageError
from optim_bench.executors import DEFAULT_TRAINER, Placement, default_jobs
from optim_bench.protocol import Cell, Plan, known_specs
from optim_bench.protocol.budget import Allowance, Forecast, choose, estimate, measure_costs
from optim_bench.protocol.catalog import (
    Request,
    build_plan,
    check_data,
    check_factories,
    check_frameworks,
    check_installed,
    extend_plan,
    parse_optimizer,
)
from optim_bench.records import FRAMEWORKS
from optim_bench.results.store import Store
from optim_bench.tasks import Task, enter_task, find_task, is_object

DEFAULT_OUTPUT = Path("optim-bench-results")
Optimizer = str | registry.OptimizerInfo | Callable[..., Any]


@dataclass(frozen=True)
class Question:
    """What is asked, and with what it may be answered.

    Args:
        request: what to compare.
        execution: how the runs are carried out.
        budget: as `Allowance.parse` reads it, or None for the tier's runs.
        output: folder of the results, or None for one that belongs to this question.
    """

    request: Request
    execution: Execution
    budget: str | None = None
    output: Path | None = None


@dataclass(frozen=True)
class Prepared:
    """A plan that is ready to run.

    Args:
        plan: what is compared.
        store: where.
        forecast: what it will take, where that was asked.
    """

    plan: Plan
    store: Store
    forecast: Forecast | None


def compare(
    task: str | Task | Sequence[str | Task],
    optimizers: Sequence[Optimizer] = (),
    *,
    budget: str | None = None,
    tier: str = "quick",
    seeds: int | None = None,
    search: Sequence[str] = (),
    framework: str | None = None,
    output: Path | str | None = None,
    executor: str | None = None,
    executor_options: Mapping[str, str] | None = None,
    jobs: int | None = None,
    timeout: float | None = None,
    data_dir: Path | str | None = None,
    device: str = "cpu",
    jobs_per_device: int = 1,
    quiet: bool = False,
) -> Comparison:
    """Compare optimizers with equally tuned AdamW on a task, and return what was found.

    Every optimizer gets the same search over the learning rate on the same tuning seeds; what is
    reported are other seeds. Whatever is named here is a registered test, variants included. A
    repeated call goes on where the last one stopped.

    Args:
        task: a `TorchTask` or a `JaxTask`, `"module:task"`, `"file.py:task"`, the name of an entry
            point of the group `optim_bench.tasks`, or a built-in workload; or several of these.
            A task passed as an object runs in this process; one that is named, in worker processes.
        optimizers: names (`"stac"`), variants (`"adamw,b1=0.95"`), references
            (`"module:factory"`, `"file.py:factory"`), declarations, or factories: in PyTorch
            `factory(module, learning_rate)` or a class of `torch.optim.Optimizer`, in JAX
            `factory(learning_rate)`. AdamW always takes part. None of them means the family of
            this project.
        budget: `"30min"`, `"2h"` or `"20000steps"`: a step is measured and the largest design that
            fits is chosen; the plan says what it can show. None takes the tier's.
        tier: `"smoke"`, `"quick"`, `"standard"` or `"full"`.
        seeds: fresh seeds, 1 to 20, or None for what the budget or the tier has.
        search: hyperparameters to search beside the learning rate, `"weight_decay"` over its
            declared range or `"weight_decay=1e-4:0.3"`; the same number of points for every
            optimizer.
        framework: `"jax"` or `"torch"`, for what exists in both; None for both.
        output: folder of the results; by default one below `optim-bench-results` that belongs to
            this question.
        executor: `"process"`, `"inline"`, `"submitit"` or `"ray"`; None chooses one of the first
            two.
        executor_options: what only that executor understands.
        jobs: runs at a time; None for one per core, at most 4.
        timeout: seconds after which a run is given up, or None.
        data_dir: where full-size data sets lie.
        device: `"cpu"`, `"cuda"` (every GPU of this machine), `"cuda:0"` (that one) or `"tpu"`.
        jobs_per_device: runs that share one GPU.
        quiet: whether nothing is printed.

    Raises:
        UsageError: something that was named cannot be meant.
        BenchError: every run of an optimizer failed, or the task does not do what the interface
            says; the message names the function and the remedy.

    Example:
        >>> import tempfile
        >>> found = compare(
        ...     "rosenbrock", ["signum"], framework="torch", tier="smoke", seeds=6,
        ...     executor="inline", output=tempfile.mkdtemp(), quiet=True,
        ... )
        >>> [(v.optimizer, v.seeds) for v in found.verdicts]
        [('signum', 6)]
    """
    question = _question(
        task,
        optimizers,
        framework,
        Execution(
            executor or "process",
            executor_options or {},
            jobs,
            timeout,
            None if data_dir is None else Path(data_dir),
            Placement(device, jobs_per_device),
        ),
        given=executor is not None,
        request=Request(tier=tier, seeds=seeds, search=_texts("search", search)),
        budget=budget,
        output=None if output is None else Path(output),
    )
    console = Console(quiet=quiet)
    prepared = prepare(question, console)
    results = finish(prepared, question.execution, console)
    return Comparison(results, prepared.store.root)


def forecast(
    task: str | Task | Sequence[str | Task],
    optimizers: Sequence[Optimizer] = (),
    *,
    budget: str | None = None,
    tier: str = "quick",
    seeds: int | None = None,
    search: Sequence[str] = (),
    framework: str | None = None,
    executor: str | None = None,
    jobs: int | None = None,
) -> Forecast:
    """Measure a step and return the plan, the time that it takes and the change it would detect.

    Args:
        task: as `compare` takes it.
        optimizers: as `compare` takes them.
        budget: as `compare` takes it.
        tier: as `compare` takes it.
        seeds: as `compare` takes it.
        search: as `compare` takes it.
        framework: as `compare` takes it.
        executor: as `compare` takes it.
        jobs: as `compare` takes it.

    Raises:
        UsageError: as `compare`.
        BenchError: as `compare`.
    """
    question = _question(
        task,
        optimizers,
        framework,
        Execution(executor or "process", {}, jobs),
        given=executor is not None,
        request=Request(tier=tier, seeds=seeds, search=_texts("search", search)),
        budget=budget,
        output=None,
    )
    found = prepare(question, Console(quiet=True), dry=True).forecast
    assert found is not None  # noqa: S101 - a dry preparation always has one
    return found


def prepare(
    question: Question, console: Console, *, trainer: str = DEFAULT_TRAINER, dry: bool = False
) -> Prepared:
    """Return the plan for a question, with everything checked that can be checked before it runs.

    Args:
        question: what is asked.
        console: for the forecast of a budget.
        trainer: `"module:function"` that turns a spec into a record.
        dry: whether nothing will run, so that the forecast is all there is.

    Raises:
        UsageError: something that was named cannot be meant, or the budget is too small.
        BenchError: something is missing or fails.
    """
    request, execution = question.request, question.execution
    allowance = None if question.budget is None else Allowance.parse(question.budget)
    check_frameworks(request, execution.executor)
    plan = build_plan(request)
    if execution.placement.kind == "tpu" and any(c.framework == "torch" for c in plan.cells):
        raise UsageError("--device tpu is for JAX alone; choose --framework jax")
    check_installed(plan, execution.executor)
    check_data(plan, execution.data_dir)
    if execution.placement.kind == "cpu":  # elsewhere, an optimizer may need the device
        check_factories(plan, execution.data_dir)
    root = question.output or _own_folder(plan, question.budget)
    store = Store(root)
    if allowance is None and not dry:
        return Prepared(plan, store, None)
    if not dry and (known := _planned_before(request, plan, store)) is not None:
        return Prepared(known, store, None)
    jobs = execution.jobs or (
        1 if execution.executor == "inline" else default_jobs(execution.placement)
    )
    one = None if execution.executor == "inline" else 1
    with stoppable():
        workers = make_workers(execution, trainer, root, jobs=one)
        try:
            with console.status("measuring a step of each") if not console.quiet else nullcontext():
                costs = measure_costs(plan, workers, evaluations)
        finally:
            workers.close()
    asked = {cell.name: cell.steps for cell in plan.cells}
    if allowance is not None:
        design, share = choose(plan, allowance, costs, jobs, evaluations, request.seeds)
        plan = build_plan(dataclasses.replace(request, design=design, share=share))
    seconds = estimate(plan.cells, plan.budget, 1.0, costs, jobs, evaluations)
    found = Forecast(plan, seconds, costs, jobs, asked)
    for line in found.lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return Prepared(plan, store, found)


def finish(
    prepared: Prepared,
    execution: Execution,
    console: Console,
    *,
    trainer: str = DEFAULT_TRAINER,
    add: Sequence[str] = (),
) -> dict[str, Any]:
    """Run what a plan still needs and return its results.

    Args:
        prepared: from `prepare`.
        execution: how the runs are carried out.
        console: for the progress.
        trainer: `"module:function"` that turns a spec into a record.
        add: optimizers to enter into the comparison that is there.

    Raises:
        BenchError: the folder holds another comparison, every run of an optimizer failed, or the
            task does not do what the interface says.
    """
    plan, store = prepared.plan, prepared.store
    store.open()
    with store.exclusive():
        store.records()
        name_strangers(store, console)
        if add:
            store.extend(plan)
        else:
            store.register(plan)
        results = carry_out(plan, store, trainer, execution, console)
    _check_worked(plan, store)
    return results


def enter_later(folder: Path, optimizers: Sequence[str], execution: Execution) -> Prepared:
    """Return the plan of a folder with further optimizers.

    Raises:
        UsageError: a name is unknown, or in the plan already.
        BenchError: there is no comparison, or something is missing.
    """
    store = Store(folder)
    plan = extend_plan(store.plan(), optimizers)
    check_installed(plan, execution.executor)
    check_data(plan, execution.data_dir)
    if execution.placement.kind == "cpu":
        check_factories(plan, execution.data_dir)
    return Prepared(plan, store, None)


def evaluations(cell: Cell, steps: int) -> int:
    """Return how often a run of so many steps is evaluated."""
    entry = find_task(cell.task or cell.workload)
    return len(entry.evaluation_steps(steps))


def _question(
    task: str | Task | Sequence[str | Task],
    optimizers: Sequence[Optimizer],
    framework: str | None,
    execution: Execution,
    *,
    given: bool,
    request: Request,
    budget: str | None,
    output: Path | None,
) -> Question:
    """Make names of objects, which a plan and a run need."""
    given_tasks: Any = task
    several = isinstance(task, Sequence) and not isinstance(task, str)
    tasks: list[Any] = list(given_tasks) if several else [given_tasks]
    for one in tasks:
        if not isinstance(one, str | Task):
            raise UsageError(
                f"a task is a {type(one).__name__}; it has to be a TorchTask, a JaxTask or a name"
            )
    references = [enter_task(t) if isinstance(t, Task) else t for t in tasks]
    if isinstance(optimizers, str) or callable(optimizers):
        raise UsageError(f"optimizers is {optimizers!r}; it has to be a list: [{optimizers!r}]")
    if framework is not None and framework not in FRAMEWORKS:
        raise UsageError(f"framework is {framework!r}; it has to be one of {', '.join(FRAMEWORKS)}")
    frameworks = FRAMEWORKS if framework is None else (framework,)
    entries = [find_task(reference) for reference in references]
    _check_apart("tasks", references, tasks)
    here = [f for f in frameworks if all(f in entry.frameworks for entry in entries)]
    names = [_name_of(optimizer, here) for optimizer in optimizers]
    _check_apart("optimizers", names, optimizers)
    objects = [name for name in references if is_object(name)]
    objects += [n for n in names if registry.is_object(parse_optimizer(n)[0])]
    if objects:
        if given and execution.executor != "inline":
            raise UsageError(
                f"{objects[0].removeprefix('object ')} exists in this process alone, and the "
                f"executor {execution.executor!r} uses others; write it into a file and name it: "
                "'file.py:name'"
            )
        for name, value in (("jobs", execution.jobs), ("timeout", execution.timeout)):
            if value is not None and (name, value) != ("jobs", 1):
                raise UsageError(
                    f"{name} is {value!r}, and {objects[0].removeprefix('object ')} exists in this "
                    "process alone, which takes one run after the other and cannot stop one; leave "
                    f"out {name}, or write it into a file and name it: 'file.py:name'"
                )
        execution = dataclasses.replace(execution, executor="inline")
    request = dataclasses.replace(
        request, workloads=references, optimizers=names, frameworks=frameworks
    )
    return Question(request, execution, budget, output)


def _texts(name: str, given: Sequence[str]) -> tuple[str, ...]:
    if isinstance(given, str):
        raise UsageError(f"{name} is {given!r}; it has to be a list: [{given!r}]")
    return tuple(given)


def _check_apart(what: str, names: Sequence[str], given: Sequence[Any]) -> None:
    """Refuse different objects of one name: each would take the place of the one before."""
    first: dict[str, Any] = {}
    for name, one in zip(names, given, strict=True):
        other = first.setdefault(name, one)
        if other is not one and other != one:
            raise UsageError(
                f"two {what} are called {name.removeprefix('object ')}; give each a name of its own"
            )


def _name_of(optimizer: Optimizer, frameworks: Sequence[str]) -> str:
    if isinstance(optimizer, str):
        return optimizer
    if not (callable(optimizer) or isinstance(optimizer, registry.OptimizerInfo)):
        raise UsageError(
            f"an optimizer is a {type(optimizer).__name__}; it has to be a name, a factory or an "
            "OptimizerInfo"
        )
    if not isinstance(optimizer, registry.OptimizerInfo) and len(frameworks) != 1:
        raise UsageError("a plain factory may be for JAX or for PyTorch; say which: framework=...")
    try:
        return registry.enter_optimizer(optimizer, frameworks[0])
    except ValueError as error:
        raise UsageError(str(error)) from error


def _own_folder(plan: Plan, budget: str | None) -> Path:
    """Return the folder of a question: the main job's, or one below it for tasks from outside."""
    if all(cell.task is None for cell in plan.cells):
        return DEFAULT_OUTPUT
    asked = json.dumps([plan.identity(), budget], sort_keys=True)
    digest = hashlib.sha256(asked.encode()).hexdigest()[:8]
    return DEFAULT_OUTPUT / f"{'-'.join(plan.workloads)}-{digest}"


def _planned_before(request: Request, whole: Plan, store: Store) -> Plan | None:
    """Return the plan that a folder has of this very request, measured when it was begun."""
    if not (store.root / "plan.json").is_file():
        return None
    known = store.plan()
    if not known.cells or not whole.cells:
        return None
    share = known.cells[0].steps / whole.cells[0].steps
    again = build_plan(dataclasses.replace(request, design=known.budget, share=share))
    return again if again.identity() == known.identity() else None


def _check_worked(plan: Plan, store: Store) -> None:
    records = store.records()
    for cell in plan.cells:
        specs = known_specs(cell, plan.budget, records)
        found = [records[key] for spec in specs if (key := spec.key()) in records]
        if found and all(record.status == "failed" for record in found):
            raise BenchError(
                f"every run of {cell.label} on {cell.workload} failed, the first with "
                f"{found[0].error}; mend the cause, then: optim-bench retry {store.root}"
            )
