"""What several commands share: options, and where they print."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from optim_bench.errors import unknown_name
from optim_bench.records import FRAMEWORKS

Workloads = Annotated[
    list[str] | None, typer.Option(help="Repeatable [default: the two of the main job].")
]
Optimizers = Annotated[
    list[str] | None,
    typer.Option(
        help="NAME, NAME,hyperparameter=value,..., module:factory or file.py:factory; repeatable "
        "[default: our optimizers]. AdamW always takes part."
    ),
]
FrameworkName = Annotated[str, typer.Option(help="jax, torch or all.")]
Jobs = Annotated[
    int | None, typer.Option(min=1, help="Runs at a time [default: one per core, at most 4].")
]
Timeout = Annotated[float | None, typer.Option(min=1, help="Give a run up after so many seconds.")]
ExecutorName = Annotated[
    str, typer.Option("--executor", help="inline, process, submitit (SLURM) or ray.")
]
ExecutorOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--executor-option",
        metavar="KEY=VALUE",
        help="Repeatable. submitit: partition, account, qos, constraint, gres, time (minutes), "
        "memory (GB), cluster (slurm or local); ray: address.",
    ),
]
Device = Annotated[str, typer.Option(help="cpu, cuda (every GPU here), cuda:0 (that one) or tpu.")]
JobsPerDevice = Annotated[int, typer.Option(min=1, help="Runs that share one GPU.")]
DataDir = Annotated[
    Path | None, typer.Option(help="Where full-size data sets lie; the default ones are built in.")
]
Folder = Annotated[Path, typer.Argument(help="Folder of a comparison.", show_default=True)]


def frameworks_of(text: str) -> Sequence[str]:
    """Return the frameworks that `--framework` names.

    Raises:
        BenchError: there is none of that name.
    """
    if text == "all":
        return FRAMEWORKS
    if text not in FRAMEWORKS:
        raise unknown_name("framework", text, (*FRAMEWORKS, "all"))
    return (text,)


def console() -> Console:
    """Return where the tables go."""
    # Without a terminal rich assumes 80 columns, too few for the verdicts.
    return Console() if sys.stdout.isatty() else Console(width=140)
