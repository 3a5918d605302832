# pyright: strict
"""The command line, which needs more than the library does: the extra `cli`."""

import sys


def main() -> None:
    """Run the command line, or say what it needs."""
    try:
        from optim_checkpoint import _commands
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in ("typer", "rich"):
            raise
        sys.stderr.write(
            f"optim-checkpoint: the command line needs {missing}, which is not installed: "
            "pip install 'optim-checkpoint[cli]'\n"
        )
        sys.exit(1)
    _commands.run()


if __name__ == "__main__":
    main()
