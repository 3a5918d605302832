"""`optim-bench data`: the only command that uses the network."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from optim_bench.errors import BenchError, UsageError, unknown_name
from optim_bench.tasks.data import DOWNLOADS, FetchError, RemoteFile, fetch

_HEX_DIGITS = 64


def build_data_app() -> typer.Typer:
    """Return the commands below `data`."""
    app = typer.Typer(help="Fetch full-size data sets.", no_args_is_help=True)

    # A callback keeps `fetch` a command of its own although it is the only one.
    @app.callback()
    def group() -> None:  # pyright: ignore[reportUnusedFunction] - typer calls it
        """Fetch full-size data sets; no other command uses the network."""

    @app.command("fetch")
    def fetch_(  # pyright: ignore[reportUnusedFunction] - typer calls it
        name: Annotated[
            str, typer.Argument(help=f"{', '.join(DOWNLOADS)}; or a file's name, with --url.")
        ],
        data_dir: Annotated[Path, typer.Option(help="The data folder.")],
        url: Annotated[str | None, typer.Option(help="Fetch this file under that name.")] = None,
        sha256: Annotated[str | None, typer.Option(help="What the file has to have.")] = None,
    ) -> None:
        """Fetch a data set, check its SHA-256 and print its licence."""
        console = Console(soft_wrap=True, highlight=False)
        if url is None and sha256 is None:
            if name not in DOWNLOADS:
                raise unknown_name("data set", name, DOWNLOADS)
            download = DOWNLOADS[name]
            files = download.files
            console.print(f"{download.title}\nLicence: {download.licence}", markup=False)
            hint = f"optim-bench run --workload {download.workload} --data-dir {data_dir}"
        else:
            files = (_given(name, url, sha256),)
            console.print(
                "Licence: that of whoever publishes the file; look it up before you use it"
            )
            hint = f"optim-bench run --data-dir {data_dir} --workload NAME"
        try:
            fetch(files, data_dir, lambda line: console.print(line, markup=False))
        except FetchError as error:
            raise BenchError(str(error)) from error
        console.print(f"Ready: {hint}", markup=False)

    return app


def _given(name: str, url: str | None, sha256: str | None) -> RemoteFile:
    if url is None or sha256 is None:
        raise UsageError("--url and --sha256 come together: what is fetched is always checked")
    digest = sha256.lower()
    if len(digest) != _HEX_DIGITS or set(digest) - set("0123456789abcdef"):
        raise UsageError(f"--sha256 is {sha256!r}; it has to be {_HEX_DIGITS} hex digits")
    if "/" in name or name in (".", ".."):
        raise UsageError(f"{name!r} is no file name; the file goes into --data-dir under this name")
    return RemoteFile(url, digest, file_name=name)
