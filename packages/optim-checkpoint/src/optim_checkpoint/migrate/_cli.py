# pyright: strict
"""The commands `import` and, for formats that are not safetensors, `export`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from optim_checkpoint._errors import printable
from optim_checkpoint._json import as_array, as_object
from optim_checkpoint.migrate._export import export_checkpoint
from optim_checkpoint.migrate._found import Report
from optim_checkpoint.migrate._import import import_checkpoint


def _pairs(option: str, given: list[str]) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for text in given:
        name, sign, value = text.partition("=")
        if not (name and sign and value):
            raise ValueError(f"{option} is {text!r}; it must be NAME=VALUE")
        pairs.append((name, value))
    return pairs


def _names(file: Path | None) -> Any:
    if file is None:
        return None
    from optim_checkpoint.migrate._safe import load_json

    names: object = load_json(file)
    if as_array(names) is None and as_object(names) is None:
        raise ValueError(f"{file} holds no list of names, as names_of() returns it")
    return names


def _keys(given: list[str]) -> dict[str, Any]:
    keys: dict[str, Any] = {}
    for role, key in _pairs("--key", given):
        keys[role] = [*keys[role], key] if role in keys else [key]
    # Orbax has one of each.
    return {role: names if len(names) > 1 else names[0] for role, names in keys.items()}


def tell(report: Report, what: str) -> None:
    """Print a report."""
    typer.echo(f"{what} step {report.step} ({report.format}): {report.path}")
    for title, lines in (
        ("", report.holds),
        ("note: ", report.notes),
        ("left out: ", report.left_out),
    ):
        for line in lines:
            typer.echo(f"  {title}{printable(line)}")


def import_step(
    source: Annotated[str, typer.Argument(help="The file or folder of the other tool.")],
    folder: Annotated[
        str, typer.Argument(help="The folder of a run, created where missing, or a URL of fsspec.")
    ],
    step: Annotated[int | None, typer.Option(help="The step, where the source has none.")] = None,
    format_: Annotated[
        str | None,
        typer.Option("--format", help="torch, lightning, trainer, accelerate, dcp or orbax."),
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option(help="The optimizer's class, such as torch.optim.AdamW.")
    ] = None,
    names: Annotated[Path | None, typer.Option(help="JSON of names_of(optimizer, model).")] = None,
    tie: Annotated[
        list[str] | None, typer.Option(help="NAME=OTHER: a tied parameter that has no entry.")
    ] = None,
    key: Annotated[
        list[str] | None, typer.Option(help="PART=KEY: which key of the file is which part.")
    ] = None,
    leave_out: Annotated[list[str] | None, typer.Option(help="What is not wanted.")] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Write an existing step anew.")
    ] = False,
) -> None:
    """Import a checkpoint of another tool; pickled code is never run."""
    report = import_checkpoint(
        source,
        folder,
        step,
        format=format_,
        optimizer=optimizer,
        names=_names(names),
        ties=dict(_pairs("--tie", tie or [])) or None,
        keys=_keys(key or []) or None,
        leave_out=leave_out or [],
        replace=replace,
    )
    tell(report, "imported")


def export_step(
    folder: str, target: str, step: int | None, format_: str, leave_out: list[str], *, force: bool
) -> None:
    """Write a step for another tool."""
    report = export_checkpoint(
        folder, target, step, format=format_, leave_out=leave_out, force=force
    )
    tell(report, "exported")
