"""The command line: options in, one function call, tables out.

Nothing here imports a framework. What a user can mend ends as one line on the standard error and a
non-zero exit status: 1 for what is wrong with names, files and installations, 2 for the usage of
the command line, 130 for Ctrl-C and 143 for SIGTERM.
"""

import dataclasses
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from optim_bench import memory, ui
from optim_bench.campaign import progress_of
from optim_bench.carry_out import carry_out, execution_of, note
from optim_bench.catalog import (
    Request,
    absent_optimizers,
    all_optimizers,
    build_plan,
    check_data,
    check_installed,
)
from optim_bench.cli_data import build_data_app
from optim_bench.cli_options import (
    DataDir,
    ExecutorName,
    ExecutorOptions,
    Folder,
    FrameworkName,
    Jobs,
    Optimizers,
    Timeout,
    Workloads,
)
from optim_bench.errors import BenchError, os_reason, unknown_name
from optim_bench.executors import DEFAULT_TRAINER, make_executor
from optim_bench.optimizers import OPTIONAL
from optim_bench.protocol import Cell, Plan
from optim_bench.records import FRAMEWORKS
from optim_bench.report import replace_section, update_readme, write_report
from optim_bench.requirements import require
from optim_bench.results import FRAMEWORK_TITLES, results_of, validate_results
from optim_bench.store import Store, read_json, write_json
from optim_bench.timing import (
    PRESETS,
    TimingRequest,
    measure_times,
    preset_markdown,
    summarize,
    time_preset,
)
from optim_bench.train import MissingExtraError
from optim_bench.workloads import WORKLOADS

DEFAULT_OUTPUT = Path("optim-bench-results")
BUSY = "this machine is busy: these times are noise, do not publish them"


def build_app(trainer: str = DEFAULT_TRAINER) -> typer.Typer:
    """Return the command line.

    Args:
        trainer: `"module:function"` that turns a spec into a record.
    """
    app = typer.Typer(
        help="Compare optimizers: real data, equal tuning budgets, paired intervals.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )

    @app.command()
    def run(  # pyright: ignore[reportUnusedFunction] - typer calls it
        tier: Annotated[str, typer.Option(help="smoke, quick, standard or full.")] = "quick",
        workload: Workloads = None,
        optimizer: Optimizers = None,
        framework: FrameworkName = "all",
        seeds: Annotated[
            int | None, typer.Option(help="Fresh seeds per optimizer [default: the tier's].")
        ] = None,
        output: Annotated[Path, typer.Option(help="Folder of the results.")] = DEFAULT_OUTPUT,
        executor: ExecutorName = "process",
        executor_option: ExecutorOptions = None,
        jobs: Jobs = None,
        timeout: Timeout = None,
        data_dir: DataDir = None,
    ) -> None:
        """Train, compare, report. Resumes by itself: finished runs are never repeated."""
        request = Request(
            tier=tier,
            workloads=tuple(workload or ()),
            optimizers=tuple(optimizer or ()),
            frameworks=_frameworks(framework),
            seeds=seeds,
        )
        execution = execution_of(executor, executor_option, jobs, timeout, data_dir)
        require(request.frameworks, executor=executor)
        plan = build_plan(request)
        check_installed(plan, executor)
        check_data(plan, execution.data_dir)
        store = Store(output)
        store.open()
        with store.exclusive():
            store.records()
            store.register(plan)
            carry_out(plan, store, trainer, execution, _console())

    @app.command()
    def retry(  # pyright: ignore[reportUnusedFunction] - typer calls it
        directory: Folder = DEFAULT_OUTPUT,
        executor: ExecutorName = "process",
        executor_option: ExecutorOptions = None,
        jobs: Jobs = None,
        timeout: Timeout = None,
        data_dir: DataDir = None,
    ) -> None:
        """Repeat the failed runs of a comparison, and finish it."""
        store = Store(directory)
        plan = store.plan()
        execution = execution_of(executor, executor_option, jobs, timeout, data_dir)
        check_installed(plan, executor)
        check_data(plan, execution.data_dir)
        store.open()
        with store.exclusive():
            failed = [key for key, record in store.records().items() if record.status == "failed"]
            _console().print(f"{len(failed)} failed runs to repeat")
            store.remove(failed)
            carry_out(plan, store, trainer, execution, _console())

    @app.command()
    def report(  # pyright: ignore[reportUnusedFunction] - typer calls it
        directory: Folder = DEFAULT_OUTPUT,
        readme: Annotated[
            Path | None,
            typer.Option("--update-readme", help="Write the tables between this file's markers."),
        ] = None,
    ) -> None:
        """Rebuild results.json, report.html, summary.md and the figures from the stored runs."""
        store = Store(directory)
        results = results_of(store)
        path = write_report(store.root, results)
        if readme is not None:
            update_readme(readme, results)
        _console().print(f"Report: {path.resolve()}", soft_wrap=True, highlight=False)

    @app.command()
    def status(  # pyright: ignore[reportUnusedFunction] - typer calls it
        directory: Folder = DEFAULT_OUTPUT,
    ) -> None:
        """Show how far a comparison is."""
        store = Store(directory)
        plan, records = store.plan(), store.records()
        _console().print(ui.status_table(progress_of(plan, records), list(records.values())))

    @app.command("list")
    def list_(  # pyright: ignore[reportUnusedFunction] - typer calls it
    ) -> None:
        """List the workloads and the optimizers."""
        for table in ui.list_tables(WORKLOADS, all_optimizers()):
            _console().print(table)
        for info in absent_optimizers():
            note(_console(), f"{info.name} ({info.title}) needs: pip install {info.requires}")

    @app.command()
    def show(  # pyright: ignore[reportUnusedFunction] - typer calls it
        name: Annotated[str, typer.Argument(help="A workload, or an optimizer.")],
    ) -> None:
        """Show what a workload or an optimizer declares."""
        optimizers = {**OPTIONAL, **all_optimizers()}
        tables = [ui.show_workload(w) for w in WORKLOADS.values() if w.name == name]
        tables += [ui.show_optimizer(i) for i in optimizers.values() if name in (i.name, i.key)]
        if not tables:
            names = {*WORKLOADS, *(info.name for info in optimizers.values())}
            raise unknown_name("name", name, names)
        for table in tables:
            _console().print(table)

    @app.command("time")
    def time_(  # pyright: ignore[reportUnusedFunction] - typer calls it
        workload: Workloads = None,
        optimizer: Optimizers = None,
        framework: FrameworkName = "all",
        rounds: Annotated[int, typer.Option(min=2, help="Interleaved rounds.")] = 20,
        preset: Annotated[
            str | None,
            typer.Option(help="The optimizer's step alone, on a fixed table: step-speed."),
        ] = None,
        directory: Annotated[
            Path | None,
            typer.Option(help="Time what this comparison compares, for its report."),
        ] = None,
        threads: Annotated[int, typer.Option(min=1, help="Pinned threads of a preset.")] = 1,
        json_file: Annotated[
            Path | None, typer.Option("--json", help="Write the numbers to this file, too.")
        ] = None,
        readme: Annotated[
            Path | None,
            typer.Option("--update-readme", help="Write a preset's table between its markers."),
        ] = None,
    ) -> None:
        """Time training steps: warmed, interleaved, compilation apart, with an A/A band."""
        if preset is not None:
            if workload or optimizer or directory:
                raise BenchError("--preset has its own problems and optimizers; leave the others")
            _time_preset(preset, _frameworks(framework), rounds, threads, json_file, readme)
            return
        if readme is not None or threads != 1:
            raise BenchError("--update-readme and --threads are for --preset; leave them away")
        if directory is not None and (workload or optimizer):
            raise BenchError("--directory times what its plan names; leave the others away")
        plan = (
            _measured_plan(workload, optimizer, framework)
            if directory is None
            else Store(directory).plan()
        )
        found: list[dict[str, Any]] = []
        for name, where, cells in _groups(plan):
            # The baseline comes last in a plan and first in a timing.
            chosen = [(c.label, c.optimizer, c.hyperparameters) for c in reversed(cells)]
            measured = measure_times(TimingRequest(name, where, chosen, rounds=rounds))
            summary = summarize(measured, plan.baseline)
            title = f"{name} in {FRAMEWORK_TITLES[where]}"
            _console().print(ui.time_table(summary, title, plan.baseline))
            found.append({"workload": name, "framework": where, **summary})
        if any(summary["busy"] for summary in found):
            note(_console(), BUSY)
        for file in filter(None, (json_file, directory and directory / "times.json")):
            write_json(file, {"schema_version": 1, "times": found})
        if directory is not None:
            _console().print(f"Now rebuild its report: optim-bench report {directory}")

    @app.command("memory")
    def memory_(  # pyright: ignore[reportUnusedFunction] - typer calls it
        workload: Workloads = None,
        optimizer: Optimizers = None,
        framework: FrameworkName = "all",
        jobs: Jobs = None,
        preset: Annotated[
            str | None, typer.Option(help="The models of the published pages: state-bytes.")
        ] = None,
        json_file: Annotated[
            Path | None, typer.Option("--json", help="Write a preset's numbers to this file, too.")
        ] = None,
        readme: Annotated[
            Path | None,
            typer.Option("--update-readme", help="Write a preset's table between its markers."),
        ] = None,
    ) -> None:
        """Count the exact bytes of each optimizer's state."""
        if preset is not None:
            if workload or optimizer:
                raise BenchError("--preset has its own models and optimizers; leave the others")
            _memory_preset(preset, _frameworks(framework), json_file, readme)
            return
        if readme is not None or json_file is not None:
            raise BenchError("--json and --update-readme are for --preset; leave them away")
        plan = _measured_plan(workload, optimizer, framework)
        workers = make_executor("process", trainer, jobs=jobs, path=[str(Path.cwd())])
        specs = {
            c.name: dataclasses.replace(c.spec(c.default_rate, 0), steps=2) for c in plan.cells
        }
        try:
            for spec in specs.values():
                workers.submit(spec)
            records = {r.spec.key(): r for r in (workers.wait() for _ in specs)}
        finally:
            workers.close()
        for name, where, cells in _groups(plan):
            rows = [(cell.label, records[specs[cell.name].key()]) for cell in cells]
            _console().print(ui.memory_table(rows, f"{name} in {FRAMEWORK_TITLES[where]}"))
        if failed := [r for r in records.values() if r.status == "failed"]:
            raise BenchError(f"{len(failed)} runs failed, first with {failed[0].error}")

    app.add_typer(build_data_app(), name="data")

    @app.command()
    def validate(  # pyright: ignore[reportUnusedFunction] - typer calls it
        file: Annotated[Path, typer.Argument(help="A results.json.")],
    ) -> None:
        """Check a results.json against its schema."""
        try:
            data = read_json(file)
        except OSError as error:
            raise BenchError(f"cannot read {file} ({os_reason(error)})") from error
        except ValueError as error:
            raise BenchError(
                f"{file} is no strict JSON ({error}); rebuild it: report DIR"
            ) from error
        if problems := validate_results(data):
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise BenchError(f"{file} is not valid: {problems[0]}{more}; rebuild it: report DIR")
        line = f"{file} is valid, schema version {data['schema_version']}"
        _console().print(line, soft_wrap=True, highlight=False)

    return app


def _time_preset(
    preset: str,
    frameworks: Sequence[str],
    rounds: int,
    threads: int,
    json_file: Path | None,
    readme: Path | None,
) -> None:
    if preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    require(frameworks)
    found = time_preset(preset, frameworks, rounds=rounds, threads=threads)
    for table in ui.preset_tables(found):
        _console().print(table)
    if found["busy"]:
        note(_console(), BUSY)
    if json_file is not None:
        write_json(json_file, found)
    if readme is not None:
        replace_section(readme, preset_markdown(found), preset)


def _memory_preset(
    preset: str, frameworks: Sequence[str], json_file: Path | None, readme: Path | None
) -> None:
    if preset not in memory.PRESETS:
        raise unknown_name("preset", preset, memory.PRESETS)
    require(frameworks)
    found = memory.memory_report(preset, frameworks)
    _console().print(ui.state_table(found))
    if json_file is not None:
        write_json(json_file, found)
    if readme is not None:
        replace_section(readme, memory.memory_markdown(found), preset)


def _measured_plan(workload: list[str] | None, optimizer: list[str] | None, framework: str) -> Plan:
    request = Request(
        workloads=tuple(workload or ()),
        optimizers=tuple(optimizer or ()),
        frameworks=_frameworks(framework),
    )
    require(request.frameworks)
    plan = build_plan(request)
    check_installed(plan, "process")
    return plan


def _groups(plan: Plan) -> Iterator[tuple[str, str, list[Cell]]]:
    """Give the cells that share a workload and a framework."""
    for name, where in dict.fromkeys((c.workload, c.framework) for c in plan.cells):
        yield name, where, [c for c in plan.cells if (c.workload, c.framework) == (name, where)]


def _frameworks(text: str) -> Sequence[str]:
    if text == "all":
        return FRAMEWORKS
    if text not in FRAMEWORKS:
        raise unknown_name("framework", text, (*FRAMEWORKS, "all"))
    return (text,)


def _console() -> Console:
    # Without a terminal rich assumes 80 columns, too few for the verdicts.
    return Console() if sys.stdout.isatty() else Console(width=140)


def run_app(app: typer.Typer, arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Args:
        app: from `build_app`.
        arguments: instead of the process's own.
    """
    try:
        status = app(args=arguments, standalone_mode=False)
    except BenchError as error:
        _complain(str(error))
        return error.status
    except MissingExtraError as error:
        _complain(str(error))
        return BenchError.status
    except (KeyboardInterrupt, typer.Abort):
        return 128 + signal.SIGINT
    except Exception as error:
        # typer brought click's errors into its own package: known by what they can do.
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        _complain(f"{message()} (see optim-bench --help)")
        return 2
    return status if isinstance(status, int) else 0


def _complain(message: str) -> None:
    Console(stderr=True, soft_wrap=True).print(
        f"error: {' '.join(message.split())}", markup=False, highlight=False
    )


def main() -> None:
    """Entry point of `optim-bench`."""
    sys.exit(run_app(build_app()))
