# pyright: strict
"""The commands: look at checkpoints, verify, pin, export and import them."""

import json
import sys
from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from optim_checkpoint._api import inspect, retained, shared_bytes, steps, verify
from optim_checkpoint._errors import (
    CheckpointError,
    CheckpointNotFoundError,
    CheckpointReadError,
    CorruptCheckpointError,
    shown,
)
from optim_checkpoint._export import export
from optim_checkpoint._pins import pin, unpin
from optim_checkpoint.migrate import _cli as migration

app = typer.Typer(
    help="Look at, verify, export and import checkpoints.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Folder = Annotated[str, typer.Argument(help="The folder of a run, or a URL of fsspec.")]
Step = Annotated[int | None, typer.Option(help="The step; the newest where left out.")]


class Part(StrEnum):
    """What can be exported."""

    MODEL = "model"
    OPTIM = "optim"
    TRAIN = "train"


def _size(nbytes: int) -> str:
    value = float(nbytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def _console() -> Console:
    # A pipe has no width: a wrapped name could not be searched for.
    width = None if sys.stdout.isatty() else 4096
    return Console(width=width, markup=False, highlight=False)


@app.command("ls")
def list_steps(folder: Folder) -> None:
    """List the steps with size, what of it other steps share, why each stays; no data is read."""
    found = steps(folder)
    if not found:
        raise CheckpointNotFoundError(f"{folder} holds no checkpoint")
    why: dict[int, list[str]] = {}
    for each in retained(folder):
        why.setdefault(each.step, []).extend(each.reasons)
    shared = shared_bytes(folder)
    columns = ("step", "framework", "optimizer", "tensors", "size", "shared", "stays", "state")
    table = Table(*columns, box=None)
    for step in found:
        stays = "; ".join(dict.fromkeys(why.get(step, []))) or "goes with the next save"
        try:
            item = inspect(folder, step)
        except CheckpointError as error:
            state = "damaged" if isinstance(error, CorruptCheckpointError) else "not readable"
            table.add_row(str(step), "", "", "", "", "", stays, f"{state}: {error}")
            continue
        table.add_row(
            str(step),
            shown(item.framework.get("name")).strip("'"),
            "" if item.optimizer is None else shown(item.optimizer).strip("'"),
            str(len(item.tensors)),
            _size(item.nbytes),
            _size(shared[step]) if shared.get(step) else "",
            stays,
            "headers sound",
        )
    _console().print(table)


@app.command("inspect")
def inspect_step(
    folder: Folder,
    step: Step = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a checkpoint holds: framework, optimizer, every tensor."""
    item = inspect(folder, step)
    if as_json:
        document = {
            "step": item.step,
            "checkpoint_id": item.checkpoint_id,
            "framework": item.framework,
            "optimizer": item.optimizer,
            "sections": list(item.sections),
            "bytes": item.nbytes,
            "tensors": [
                {"part": t.part, "name": t.name, "dtype": t.dtype, "shape": list(t.shape)}
                for t in item.tensors
            ],
        }
        typer.echo(json.dumps(document, indent=2))
        return
    console = _console()
    console.print(f"step {item.step}   {_size(item.nbytes)}   id {item.checkpoint_id}")
    console.print(f"framework {shown(item.framework)}")
    console.print(f"holds {', '.join(shown(name).strip(chr(39)) for name in item.sections)}")
    if item.optimizer is not None:
        console.print(f"optimizer {shown(item.optimizer)}")
    table = Table("part", "tensor", "dtype", "shape", "size", box=None)
    for tensor in item.tensors:
        name = shown(tensor.name)[1:-1]
        table.add_row(
            tensor.part, name, tensor.dtype, str(list(tensor.shape)), _size(tensor.nbytes)
        )
    console.print(table)


@app.command("verify")
def verify_steps(
    folder: Folder,
    step: Step = None,
    every: Annotated[bool, typer.Option("--all", help="Verify every step.")] = False,
) -> None:
    """Read every byte and compare it with its digest; exit 1 at any difference."""
    found = steps(folder)
    wanted = found if every else [step if step is not None else (found[-1] if found else 0)]
    if not found:
        raise CheckpointNotFoundError(f"{folder} holds no checkpoint")
    if every and step is not None:
        raise ValueError("--step and --all exclude each other")
    failed = False
    for number in wanted:
        try:
            report = verify(folder, number)
        except CorruptCheckpointError as error:
            failed = True
            typer.echo(f"step {number}: DAMAGED: {error}", err=True)
        except CheckpointReadError as error:
            failed = True
            typer.echo(f"step {number}: NOT READ: {error}", err=True)
        else:
            typer.echo(
                f"step {number}: sound, {report.tensors} tensors in {report.files} files, "
                f"{_size(report.nbytes)}"
            )
    if failed:
        raise typer.Exit(1)


@app.command("pin")
def pin_step(
    folder: Folder,
    step: Annotated[int, typer.Argument(help="The step.")],
    reason: Annotated[str, typer.Argument(help="Why, for people.")],
) -> None:
    """Keep a step whatever a save is told to keep."""
    pin(folder, step, reason)
    typer.echo(f"pinned step {step}")


@app.command("unpin")
def unpin_step(folder: Folder, step: Annotated[int, typer.Argument(help="The step.")]) -> None:
    """Take a pin back; the next save may remove the step."""
    unpin(folder, step)
    typer.echo(f"unpinned step {step}")


@app.command("export")
def export_part(
    folder: Folder,
    target: Annotated[str, typer.Argument(help="The .safetensors file to write.")],
    step: Step = None,
    part: Annotated[
        Part | None, typer.Option(help="What of it to write, for safetensors; model if left out.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file.")] = False,
    format_: Annotated[
        str, typer.Option("--format", help="safetensors, torch, lightning or dcp.")
    ] = "safetensors",
    leave_out: Annotated[
        list[str] | None, typer.Option(help="What is not wanted; not for safetensors.")
    ] = None,
) -> None:
    """Write one part as a plain .safetensors file, or all of it for another tool."""
    if format_ != "safetensors":
        if part is not None:
            raise ValueError(f"--part is for safetensors; {format_} takes every part")
        migration.export_step(folder, target, step, format_, leave_out or [], force=force)
        return
    if leave_out:
        raise ValueError("--leave-out is not for safetensors, which takes one --part")
    count = export(folder, target, step, part=(part or Part.MODEL).value, force=force)
    typer.echo(f"wrote {count} tensors to {target}")


app.command("import")(migration.import_step)


def run() -> None:
    """Run a command; an error of ours or of the file system is one line and exit code 1."""
    try:
        app()
    except (CheckpointError, OSError, ValueError) as error:
        typer.echo(f"optim-checkpoint: {error}", err=True)
        sys.exit(1)
