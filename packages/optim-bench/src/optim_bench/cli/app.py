"""The command line: options in, one function call, tables out.

Nothing here imports a framework. What a user can mend ends as one line on the standard error and a
non-zero exit status: 2 for what was typed (names, values, options), 1 for what is wrong with files,
installations and runs, 130 for Ctrl-C and 143 for SIGTERM.
"""

import signal
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from optim_bench.cli import ui
from optim_bench.cli.carry_out import carry_out, conclude, execution_of, name_strangers, note
from optim_bench.cli.compare import DEFAULT_OUTPUT, Question, enter_later, finish, prepare
from optim_bench.cli.data import build_data_app
from optim_bench.cli.measure import add_measure_commands
from optim_bench.cli.options import (
    DataDir,
    Device,
    ExecutorName,
    ExecutorOptions,
    Folder,
    FrameworkName,
    Jobs,
    JobsPerDevice,
    Optimizers,
    Timeout,
    Workloads,
    console,
    frameworks_of,
)
from optim_bench.errors import BenchError, UsageError, os_reason, unknown_name
from optim_bench.executors import DEFAULT_TRAINER
from optim_bench.executors.train import MissingExtraError
from optim_bench.optimizers import OPTIONAL
from optim_bench.protocol.campaign import failed_runs, progress_of
from optim_bench.protocol.catalog import (
    Request,
    absent_optimizers,
    all_optimizers,
    check_data,
    check_installed,
)
from optim_bench.report.pages import update_readme, write_report
from optim_bench.results.store import Store, read_json
from optim_bench.results.verdicts import results_of, validate_results
from optim_bench.tasks.built_in import WORKLOADS


def build_app(trainer: str = DEFAULT_TRAINER) -> typer.Typer:
    """Return the command line.

    Args:
        trainer: `"module:function"` that turns a spec into a record.
    """
    app = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        # Markup takes `[default: ...]` in a help text for a style, and drops it.
        rich_markup_mode=None,
    )

    @app.callback()
    def top(  # pyright: ignore[reportUnusedFunction] - typer calls it
        version: Annotated[
            bool,
            typer.Option(
                "--version", callback=_version, is_eager=True, help="Print the version and stop."
            ),
        ] = False,
    ) -> None:
        """Compare optimizers: real data, equal tuning budgets, paired intervals."""

    @app.command()
    def run(  # pyright: ignore[reportUnusedFunction] - typer calls it
        task: Annotated[
            list[str] | None,
            typer.Argument(
                help="What to train: file.py:task, module:task, or a workload's name "
                "[default: the two of the main job]."
            ),
        ] = None,
        tier: Annotated[str, typer.Option(help="smoke, quick, standard or full.")] = "quick",
        workload: Workloads = None,
        optimizer: Optimizers = None,
        framework: FrameworkName = "all",
        budget: Annotated[
            str | None,
            typer.Option(
                help="Instead of a tier: 30min, 2h or 20000steps. A step is measured, and the "
                "largest comparison that fits is planned."
            ),
        ] = None,
        search: Annotated[
            list[str] | None,
            typer.Option(
                help="Search these beside the learning rate: weight_decay,b1 over the declared "
                "ranges, or weight_decay=1e-4:0.3; the same number of points for every optimizer."
            ),
        ] = None,
        dry_run: Annotated[
            bool,
            typer.Option(
                "--dry-run", help="Print the plan, its time and what it would detect; then stop."
            ),
        ] = False,
        add: Annotated[
            list[str] | None,
            typer.Option(
                help="Enter this optimizer into the comparison of --output, as exploratory."
            ),
        ] = None,
        seeds: Annotated[
            int | None, typer.Option(help="Fresh seeds per optimizer [default: the tier's].")
        ] = None,
        output: Annotated[
            Path | None,
            typer.Option(
                help="Folder of the results [default: optim-bench-results; for tasks of your own "
                "one below it]."
            ),
        ] = None,
        executor: ExecutorName = "process",
        executor_option: ExecutorOptions = None,
        jobs: Jobs = None,
        timeout: Timeout = None,
        data_dir: DataDir = None,
        device: Device = "cpu",
        jobs_per_device: JobsPerDevice = 1,
    ) -> None:
        """Train, compare, report. Resumes by itself: finished runs are never repeated."""
        execution = execution_of(
            executor, executor_option, jobs, timeout, data_dir, device, jobs_per_device
        )
        if add:
            others = (task, workload, optimizer, budget, search, dry_run, seeds)
            if any(others) or output is None:
                raise UsageError("--add takes what is in --output as it is; leave the others away")
            prepared = enter_later(output, add, execution)
        else:
            request = Request(
                tier=tier,
                workloads=(*(task or ()), *(workload or ())),
                optimizers=tuple(optimizer or ()),
                frameworks=frameworks_of(framework),
                seeds=seeds,
                search=tuple(search or ()),
            )
            question = Question(request, execution, budget, output)
            prepared = prepare(question, console(), trainer=trainer, dry=dry_run)
        if dry_run:
            return
        results = finish(prepared, execution, console(), trainer=trainer, add=add or ())
        conclude(console(), prepared.store, results)

    @app.command()
    def retry(  # pyright: ignore[reportUnusedFunction] - typer calls it
        directory: Folder = DEFAULT_OUTPUT,
        executor: ExecutorName = "process",
        executor_option: ExecutorOptions = None,
        jobs: Jobs = None,
        timeout: Timeout = None,
        data_dir: DataDir = None,
        device: Device = "cpu",
        jobs_per_device: JobsPerDevice = 1,
    ) -> None:
        """Repeat the failed runs of a comparison, and finish it."""
        store = Store(directory)
        plan = store.plan()
        execution = execution_of(
            executor, executor_option, jobs, timeout, data_dir, device, jobs_per_device
        )
        check_installed(plan, executor)
        check_data(plan, execution.data_dir)
        store.open()
        with store.exclusive():
            failed = failed_runs(plan, store.records())
            console().print(f"{len(failed)} failed runs to repeat")
            results = carry_out(plan, store, trainer, execution, console(), repeat=failed)
        conclude(console(), store, results)

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
        name_strangers(store, console())
        path = write_report(store.root, results)
        if readme is not None:
            update_readme(readme, results)
        console().print(f"Report: {path.resolve()}", soft_wrap=True, highlight=False)

    @app.command()
    def status(  # pyright: ignore[reportUnusedFunction] - typer calls it
        directory: Folder = DEFAULT_OUTPUT,
    ) -> None:
        """Show how far a comparison is."""
        store = Store(directory)
        plan, records = store.plan(), store.records()
        name_strangers(store, console())
        console().print(ui.status_table(progress_of(plan, records), list(records.values())))

    @app.command("list")
    def list_(  # pyright: ignore[reportUnusedFunction] - typer calls it
    ) -> None:
        """List the workloads and the optimizers."""
        for table in ui.list_tables(WORKLOADS, all_optimizers()):
            console().print(table)
        for info in absent_optimizers():
            note(console(), f"{info.name} ({info.title}) needs: pip install {info.requires}")

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
            console().print(table)

    add_measure_commands(app, trainer)
    app.add_typer(build_data_app(), name="data")

    @app.command()
    def validate(  # pyright: ignore[reportUnusedFunction] - typer calls it
        file: Annotated[Path, typer.Argument(help="A results.json, or its folder.")],
    ) -> None:
        """Check a results.json against its schema."""
        file = file / "results.json" if file.is_dir() else file
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
        console().print(line, soft_wrap=True, highlight=False)

    return app


def _version(asked: bool) -> None:
    if asked:
        console().print(f"optim-bench {metadata.version('optim-bench')}", highlight=False)
        raise typer.Exit


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
    except OSError as error:
        # Such as a full disk below the temporary folder, or a folder without its permissions.
        where = f" {error.filename}" if error.filename else ""
        _complain(f"the system refuses{where} ({os_reason(error)}); every finished run is kept")
        return BenchError.status
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
    # `--optimizer my_module:factory` finds the user's file, as `python -m optim_bench` does; behind
    # everything installed, so that no file there can stand in for a module of ours.
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    sys.exit(run_app(build_app()))
