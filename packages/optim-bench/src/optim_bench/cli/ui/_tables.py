"""Tables on the terminal."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from optim_bench.optimizers import OptimizerInfo
from optim_bench.protocol.campaign import Progress
from optim_bench.records import RunRecord
from optim_bench.results.verdicts import (
    FRAMEWORK_TITLES,
    INTERVAL_NOTE,
    LABELS,
    chosen_text,
    judged_mean,
    ratio_columns,
)
from optim_bench.tasks.built_in import Workload

VERDICT_STYLES = {"better": "bold green", "worse": "bold red", "no difference": "default"}


def verdict_tables(results: Mapping[str, Any]) -> Iterator[Table]:
    """Give one table per framework: JAX and PyTorch are never ranked against each other."""
    comparisons = {c["name"]: c for c in results["comparisons"]}
    for framework, title in FRAMEWORK_TITLES.items():
        cells = [cell for cell in results["cells"] if cell["framework"] == framework]
        if not cells:
            continue
        timed = any(cell["step_time"] for cell in cells)
        table = _table(
            title, f"geometric mean over fresh seeds; ratio to equally tuned AdamW. {INTERVAL_NOTE}"
        )
        table.add_column("workload")
        table.add_column("optimizer")
        judged = "test loss" if not any("judged" in cell for cell in cells) else "judged"
        numbers = ["rate", judged, "ratio", "interval", "p (Holm)", "seeds", "state"]
        for heading in [*numbers, *(["step, ms"] if timed else [])]:
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("verdict")
        previous = None
        for cell in cells:
            comparison = comparisons.get(cell["name"])
            workload = cell["workload"] if cell["workload"] != previous else ""
            if workload and previous is not None:
                table.add_section()
            previous = cell["workload"]
            columns = _numbers(cell, comparison)
            step = cell["step_time"]
            time = [f"{1e3 * step['median']:.3g}" if step else ""] if timed else []
            table.add_row(workload, cell["title"], *columns, *time, _verdict(comparison))
        yield table


def _numbers(cell: Mapping[str, Any], comparison: Mapping[str, Any] | None) -> list[str]:
    mean = judged_mean(cell)
    rate = chosen_text(cell["tuning"]).replace(", ", "\n")
    columns = [rate, "" if mean is None else f"{mean:.4g}"]
    state = cell["state_bytes"]
    ratio = f"{state / cell['parameter_bytes']:.3g} x" if cell["parameter_bytes"] else ""
    return [*columns, *ratio_columns(comparison), f"{cell['fresh']['ok']}", ratio]


def _verdict(comparison: Mapping[str, Any] | None) -> Text:
    if comparison is None:
        return Text("baseline", style="dim")
    verdict = comparison["verdict"]
    return Text(LABELS[verdict], style=VERDICT_STYLES.get(verdict, "yellow"))


def time_table(summary: Mapping[str, Any], title: str, baseline: str) -> Table:
    """Give step times with their ratios, and the A/A band that a ratio has to leave."""
    low, high = summary["band"]
    band = f"{baseline} against a copy of itself: {low:.2f} to {high:.2f}; inside it is noise"
    table = _table(title, f"{band}. {summary['rounds']} rounds, medians.")
    table.add_column("optimizer")
    for heading in ("ms per step", "quartiles", "ratio", "5 to 95 %", "first call, s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for label, row in summary["rows"].items():
        table.add_row(
            label,
            f"{1e3 * row['median']:.3f}",
            f"{1e3 * row['low']:.3f} to {1e3 * row['high']:.3f}",
            f"{row['ratio']:.2f}",
            f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f}",
            f"{row['first']:.2f}",
        )
    return table


def preset_tables(found: Mapping[str, Any]) -> Iterator[Table]:
    """Give one table per problem of a timed preset."""
    for problem in dict.fromkeys(row["problem"] for row in found["rows"]):
        rows = [row for row in found["rows"] if row["problem"] == problem]
        threads = found["threads"]
        note = (
            f"{found['rounds']} rounds, {threads} pinned {'thread' if threads == 1 else 'threads'}"
        )
        table = _table(problem, f"{note}; a ratio inside the A/A band is noise")
        for heading in ("step", "against"):
            table.add_column(heading)
        for heading in ("ms", "ratio", "quartiles", "A/A band", "to reach", "limit"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("")
        for row in rows:
            table.add_row(
                row["title"],
                row["baseline"],
                f"{1e3 * row['seconds']:.2f}",
                f"{row['ratio']:.2f}",
                f"{row['low']:.2f} to {row['high']:.2f}",
                f"{row['band'][0]:.2f} to {row['band'][1]:.2f}",
                f"{row['reach']:.2f}",
                "" if row["limit"] is None else f"{row['limit']:.2f}",
                Text("reached", "green") if row["reached"] else Text("missed", "bold red"),
            )
        yield table


def memory_table(records: Sequence[tuple[str, RunRecord]], title: str) -> Table:
    """Give exact bytes of parameters and optimizer state, counted on live objects."""
    table = _table(title, "after two steps, counted on the live arrays")
    table.add_column("optimizer")
    for heading in ("parameters", "bytes", "bytes of state", "state / parameters"):
        table.add_column(heading, justify="right", no_wrap=True)
    for label, record in records:
        if record.status == "failed":
            table.add_row(label, "", "", "failed", Text(record.error or ""))
            continue
        table.add_row(
            label,
            f"{record.parameters:,}",
            f"{record.parameter_bytes:,}",
            f"{record.state_bytes:,}",
            f"{record.state_bytes / record.parameter_bytes:.3f}",
        )
    return table


def state_table(found: Mapping[str, Any]) -> Table:
    """Give the bytes of a memory preset."""
    table = _table("Optimizer state", "exact; peaks are the compiler's (JAX) or CUDA's")
    for heading in ("model", "optimizer"):
        table.add_column(heading)
    for heading in ("bytes of state", "to AdamW's", "temporaries", "peak"):
        table.add_column(heading, justify="right", no_wrap=True)
    model = None
    for row in found["rows"]:
        if model not in (None, row["model"]):
            table.add_section()
        table.add_row(
            "" if row["model"] == model else row["model"],
            row["optimizer"],
            f"{row['state_bytes']:,}",
            f"{row['ratio']:.4f}",
            *("" if row[n] is None else f"{row[n]:,}" for n in ("temporary_bytes", "peak_bytes")),
        )
        model = row["model"]
    return table


def status_table(progress: Progress, records: Sequence[RunRecord]) -> Table:
    """Give the state of every cell."""
    table = _table("Runs")
    table.add_column("workload")
    table.add_column("framework")
    table.add_column("optimizer")
    table.add_column("finished", justify="right")
    table.add_column("state")
    for name, cell in progress.cells.items():
        workload, framework, label = name.split("/", 2)
        count = f"{cell.finished} of {cell.expected}"
        table.add_row(workload, FRAMEWORK_TITLES[framework], label, count, cell.phase.value)
    troubles = [
        f"{sum(record.status == status for record in records)} {status}"
        for status in ("diverged", "failed")
    ]
    table.caption = ", ".join(troubles)
    return table


def list_tables(
    workloads: Mapping[str, Workload], optimizers: Mapping[str, OptimizerInfo]
) -> Iterator[Table]:
    """Give the workloads and the optimizers."""
    table = _table("Workloads")
    for heading in ("name", "what it is", "data"):
        table.add_column(heading)
    for workload in workloads.values():
        table.add_row(workload.name, workload.title, workload.kind)
    yield table
    for framework, title in FRAMEWORK_TITLES.items():
        table = _table(f"Optimizers in {title}")
        for heading in ("name", "what it is", "family"):
            table.add_column(heading)
        for info in optimizers.values():
            if info.framework == framework:
                table.add_row(info.name, info.title, info.family)
        yield table


def show_workload(workload: Workload) -> Table:
    """Give everything a workload declares."""
    rows = {
        "what it is": workload.title,
        "version": str(workload.version),
        "data": workload.kind,
        "loss": workload.loss.replace("_", " "),
        "also measured": ", ".join(workload.metrics) or "nothing",
        "examples per step": str(workload.batch),
        "schedule": workload.schedule,
        "steps": ", ".join(f"{tier} {steps}" for tier, steps in workload.steps.items()),
        "licence of the data": workload.licence or "none needed, the problem is synthetic",
    }
    if workload.target is not None:
        target = workload.target
        rows["target"] = f"{target.metric} at most {target.value:g}; {target.origin}"
    return _facts(workload.name, rows)


def show_optimizer(info: OptimizerInfo) -> Table:
    """Give everything an optimizer declares, hyperparameters with defaults and ranges."""
    rows = {"what it is": info.title, "family": info.family}
    if info.schedule is not None:
        rows["schedule"] = f"always {info.schedule}"
    if info.requires is not None:
        rows["needs"] = info.requires
    for name, parameter in info.parameters.items():
        rows[name] = f"{parameter.default!r} by default, {parameter.range()}"
    return _facts(info.key, rows)


def _facts(title: str, rows: Mapping[str, str]) -> Table:
    table = _table(title)
    table.show_header = False
    table.add_column("fact", style="dim", no_wrap=True)
    table.add_column("value")
    for name, value in rows.items():
        table.add_row(name, Text(value))
    return table


def _table(title: str, caption: str | None = None) -> Table:
    return Table(
        title=title,
        caption=caption,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
        title_style="bold",
    )
