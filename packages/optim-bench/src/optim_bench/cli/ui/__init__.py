"""What the command line shows: progress while it runs, tables when it is done."""

from optim_bench.cli.ui._progress import live_progress
from optim_bench.cli.ui._tables import (
    list_tables,
    memory_table,
    preset_tables,
    show_optimizer,
    show_workload,
    state_table,
    status_table,
    time_table,
    verdict_tables,
)

__all__ = [
    "list_tables",
    "live_progress",
    "memory_table",
    "preset_tables",
    "show_optimizer",
    "show_workload",
    "state_table",
    "status_table",
    "time_table",
    "verdict_tables",
]
