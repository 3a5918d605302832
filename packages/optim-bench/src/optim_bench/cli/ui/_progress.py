"""Progress of a comparison: a live table on a terminal, a line every few seconds elsewhere."""

import time
from collections.abc import Generator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from optim_bench.protocol import Phase
from optim_bench.protocol.campaign import Listener, Progress
from optim_bench.records import RunRecord

SECONDS_BETWEEN_LINES = 5.0
# A rate from the first runs alone is mostly the import of a framework.
RUNS_BEFORE_ESTIMATE = 8
PHASE_STYLES = {Phase.TUNING: "yellow", Phase.FRESH: "cyan", Phase.DONE: "green"}


@contextmanager
def live_progress(console: Console) -> Generator[Listener, None, None]:
    """Give a listener that shows the progress on a console."""
    clock = _Clock()
    if not console.is_terminal:
        yield _plain_lines(console, clock)
        return
    with Live(console=console, refresh_per_second=4, transient=True) as live:

        def update(progress: Progress) -> None:
            clock.update(progress)
            live.update(Group(_cells(progress), Text(_summary(progress, clock))))

        yield update


class _Clock:
    """Elapsed and remaining time of this start, and what went wrong so far."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.troubles = {"diverged": 0, "failed": 0}

    def update(self, progress: Progress) -> None:
        record: RunRecord | None = progress.record
        if record is not None and record.status in self.troubles:
            self.troubles[record.status] += 1

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started

    def remaining(self, progress: Progress) -> float | None:
        if progress.new < RUNS_BEFORE_ESTIMATE:
            return None
        return self.elapsed / progress.new * (progress.expected - progress.finished)


def _plain_lines(console: Console, clock: _Clock) -> Listener:
    last = -SECONDS_BETWEEN_LINES

    def update(progress: Progress) -> None:
        nonlocal last
        clock.update(progress)
        done = progress.finished == progress.expected
        if done or clock.elapsed - last >= SECONDS_BETWEEN_LINES:
            last = clock.elapsed
            console.print(_summary(progress, clock), markup=False, highlight=False)

    return update


def _summary(progress: Progress, clock: _Clock) -> str:
    parts = [
        f"{progress.finished} of {progress.expected} runs",
        f"{_minutes(clock.elapsed)} so far",
    ]
    remaining = clock.remaining(progress)
    if remaining is not None and progress.finished < progress.expected:
        parts.append(f"about {_minutes(remaining)} to go")
    parts += [f"{count} {status}" for status, count in clock.troubles.items() if count]
    return ", ".join(parts)


def _cells(progress: Progress) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, cell in progress.cells.items():
        workload, framework, label = name.split("/", 2)
        table.add_row(
            Text(workload),
            Text({"jax": "JAX", "torch": "PyTorch"}[framework], style="dim"),
            Text(label),
            ProgressBar(total=cell.expected, completed=cell.finished, width=24),
            Text(f"{cell.finished}/{cell.expected}", justify="right"),
            Text(cell.phase.value, style=PHASE_STYLES[cell.phase]),
        )
    return table


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
