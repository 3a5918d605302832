"""`optim-bench time` and `memory`: what a step costs, beside what it brings."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from optim_bench.cli import ui
from optim_bench.cli.carry_out import note
from optim_bench.cli.options import (
    DataDir,
    FrameworkName,
    Jobs,
    Optimizers,
    Workloads,
    console,
    frameworks_of,
)
from optim_bench.errors import BenchError, UsageError, unknown_name
from optim_bench.executors import make_executor
from optim_bench.executors.requirements import require
from optim_bench.protocol import Cell, Plan
from optim_bench.protocol.catalog import (
    Request,
    build_plan,
    check_data,
    check_frameworks,
    check_installed,
)
from optim_bench.report import memory
from optim_bench.report.pages import replace_section
from optim_bench.report.timing import (
    PRESETS,
    TimingRequest,
    measure_times,
    preset_markdown,
    summarize,
    time_preset,
)
from optim_bench.results.store import Store, write_json
from optim_bench.results.verdicts import FRAMEWORK_TITLES

BUSY = "this machine is busy: these times are noise, do not publish them"


def add_measure_commands(app: typer.Typer, trainer: str) -> None:
    """Add the commands to the command line.

    Args:
        app: the command line.
        trainer: `"module:function"` that turns a spec into a record.
    """

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
        data_dir: DataDir = None,
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
            if workload or optimizer or directory or data_dir:
                raise UsageError("--preset has its own problems and optimizers; leave the others")
            _time_preset(preset, frameworks_of(framework), rounds, threads, json_file, readme)
            return
        if readme is not None or threads != 1:
            raise UsageError("--update-readme and --threads are for --preset; leave them away")
        if directory is not None and (workload or optimizer):
            raise UsageError("--directory times what its plan names; leave the others away")
        plan = (
            _measured_plan(workload, optimizer, framework)
            if directory is None
            else Store(directory).plan()
        )
        check_installed(plan, "process")
        check_data(plan, data_dir)
        found: list[dict[str, Any]] = []
        for name, where, cells in _groups(plan):
            # The baseline comes last in a plan and first in a timing.
            chosen = [(c.label, c.optimizer, c.hyperparameters) for c in reversed(cells)]
            task = cells[0].task or name
            request = TimingRequest(task, where, chosen, rounds=rounds, data_dir=data_dir)
            measured = measure_times(request)
            summary = summarize(measured, plan.baseline)
            title = f"{name} in {FRAMEWORK_TITLES[where]}"
            console().print(ui.time_table(summary, title, plan.baseline))
            found.append({"workload": name, "framework": where, **summary})
        if any(summary["busy"] for summary in found):
            note(console(), BUSY)
        for file in filter(None, (json_file, directory and directory / "times.json")):
            write_json(file, {"schema_version": 1, "times": found})
        if directory is not None:
            console().print(f"Now rebuild its report: optim-bench report {directory}")

    @app.command("memory")
    def memory_(  # pyright: ignore[reportUnusedFunction] - typer calls it
        workload: Workloads = None,
        optimizer: Optimizers = None,
        framework: FrameworkName = "all",
        jobs: Jobs = None,
        data_dir: DataDir = None,
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
            if workload or optimizer or data_dir:
                raise UsageError("--preset has its own models and optimizers; leave the others")
            _memory_preset(preset, frameworks_of(framework), json_file, readme)
            return
        if readme is not None or json_file is not None:
            raise UsageError("--json and --update-readme are for --preset; leave them away")
        plan = _measured_plan(workload, optimizer, framework)
        check_installed(plan, "process")
        check_data(plan, data_dir)
        workers = make_executor(
            "process", trainer, jobs=jobs, data_dir=data_dir, path=[str(Path.cwd())]
        )
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
            console().print(ui.memory_table(rows, f"{name} in {FRAMEWORK_TITLES[where]}"))
        if failed := [r for r in records.values() if r.status == "failed"]:
            raise BenchError(f"{len(failed)} runs failed, first with {failed[0].error}")


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
        console().print(table)
    if found["busy"]:
        note(console(), BUSY)
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
    console().print(ui.state_table(found))
    if json_file is not None:
        write_json(json_file, found)
    if readme is not None:
        replace_section(readme, memory.memory_markdown(found), preset)


def _measured_plan(workload: list[str] | None, optimizer: list[str] | None, framework: str) -> Plan:
    request = Request(
        workloads=tuple(workload or ()),
        optimizers=tuple(optimizer or ()),
        frameworks=frameworks_of(framework),
    )
    check_frameworks(request)
    return build_plan(request)


def _groups(plan: Plan) -> Iterator[tuple[str, str, list[Cell]]]:
    """Give the cells that share a workload and a framework."""
    for name, where in dict.fromkeys((c.workload, c.framework) for c in plan.cells):
        yield name, where, [c for c in plan.cells if (c.workload, c.framework) == (name, where)]
