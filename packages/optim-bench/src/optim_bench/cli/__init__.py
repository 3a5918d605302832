"""How a user asks: the command line and, below it, the one call from Python."""

from optim_bench.cli.app import build_app, main, run_app

__all__ = ["build_app", "main", "run_app"]
