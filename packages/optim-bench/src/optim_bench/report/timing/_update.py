"""Time a preset and make its table: ratio per round, quartiles, A/A band, target."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from optim_bench.errors import BenchError
from optim_bench.executors import available_cores, worker_environment
from optim_bench.executors.train import environment
from optim_bench.report.timing._presets import PRESETS, Contender, Floor, Group
from optim_bench.report.timing._summary import BUSY_SHARE, machine, rank
from optim_bench.report.timing._update_process import REFUSED

COPY = "A/A"


def time_preset(
    preset: str,
    frameworks: Sequence[str],
    *,
    rounds: int = 30,
    threads: int = 1,
    round_seconds: float = 0.05,
    first_calls: int = 5,
) -> dict[str, Any]:
    """Time every group of a preset, each in a pinned process of its own.

    Of its own, because a step that allocates is fast or slow by what ran before it in the process:
    one of AdamW(foreach=True) took 50 ms where other groups had left memory behind, 90 ms without.

    Args:
        preset: a name in `PRESETS`.
        frameworks: which ones take part.
        rounds: interleaved rounds of each group.
        threads: threads, and cores, of the process.
        round_seconds: least duration of one contender's round.
        first_calls: repetitions where the first call is what is timed.

    Returns:
        What `optim-bench time --preset --json` writes: rows with their ratios, those of the
        stripped steps, machine, load.

    Raises:
        BenchError: a measuring process failed, or the machine has fewer cores than `threads`.
    """
    if threads > len(available_cores()):
        raise BenchError(
            f"--threads is {threads}, and this process may use {len(available_cores())} cores; "
            "use fewer"
        )
    request = {
        "preset": preset,
        "threads": threads,
        "rounds": rounds,
        "round_seconds": round_seconds,
        "first_calls": first_calls,
    }
    load = [os.getloadavg()[0]]
    seconds: dict[str, dict[str, list[float]]] = {}
    devices: set[str] = set()
    for framework in frameworks:
        for group in PRESETS[preset]:
            if group.framework == framework:
                found = _measure({**request, "group": group.name}, threads)
                seconds[group.name] = found["rounds"]
                devices |= {found["device"]} - {None}
        load.append(os.getloadavg()[0])
    device = PRESETS[preset][0].device
    versions = {k: v for f in frameworks for k, v in environment(f, device).items()}
    return {
        "schema_version": 1,
        **request,
        "rows": list(_rows(preset, seconds)),
        "floors": list(_floors(preset, seconds)),
        # What was running before; what runs meanwhile is this.
        "busy": load[0] > BUSY_SHARE * len(available_cores()),
        "load": [round(value, 2) for value in load],
        "machine": machine(),
        "devices": sorted(devices),
        "environment": versions,
    }


def _measure(request: Mapping[str, Any], threads: int) -> dict[str, Any]:
    variables = worker_environment(os.environ)
    if threads > 1:
        single = worker_environment({})
        for name, value in single.items():
            if value == "1" and name.endswith("_THREADS"):
                variables[name] = str(threads)
        variables["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "")
    done = subprocess.run(
        [sys.executable, "-m", "optim_bench.report.timing._update_process"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
        env=variables,
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no message"]
        if done.returncode == REFUSED:
            raise BenchError(lines[-1])
        raise BenchError(
            f"timing {request['group']!r} of {request['preset']} failed: {lines[-1]}; install "
            "the optimizers' releases that this version of optim-bench was made for"
        )
    return json.loads(done.stdout.splitlines()[-1])


def _rows(preset: str, seconds: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for group in PRESETS[preset]:
        for contender in group.contenders if group.name in seconds else ():
            row = _row(group, contender, seconds[group.name])
            yield {
                **row,
                "reach": contender.reach,
                "limit": contender.limit,
                "reached": row["ratio"] <= contender.reach,
            }


def _floors(preset: str, seconds: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for group in PRESETS[preset]:
        for floor in group.floors if group.name in seconds else ():
            yield _row(group, floor, seconds[group.name])


def _row(group: Group, timed: Contender | Floor, found: Mapping[str, Any]) -> dict[str, Any]:
    base = found[group.baseline]
    copy = _ratios(found[COPY], base)
    ratios = _ratios(found[timed.case], base)
    return {
        "group": group.name,
        "framework": group.framework,
        "problem": group.title,
        "what": group.what,
        "title": timed.title,
        "baseline": group.baseline_title,
        "seconds": statistics.median(found[timed.case]),
        "baseline_seconds": statistics.median(base),
        "ratio": statistics.median(ratios),
        "low": rank(ratios, 0.25),
        "high": rank(ratios, 0.75),
        "band": [rank(copy, 0.05), rank(copy, 0.95)],
        "rounds": len(ratios),
    }


def _ratios(seconds: Sequence[float], base: Sequence[float]) -> list[float]:
    return sorted(a / b for a, b in zip(seconds, base, strict=True))


def preset_markdown(data: Mapping[str, Any]) -> str:
    """Return the table of a timed preset, misses named as such."""
    facts = data["environment"]
    versions = ", ".join(
        f"{name} {facts[name]}" for name in sorted(facts) if name not in _NOT_VERSIONS
    )
    threads = "1 pinned thread" if data["threads"] == 1 else f"{data['threads']} pinned threads"
    where = ", ".join((*data["devices"], "CPU"))
    lines = [
        "| step | against | ms | ratio | quartiles | A/A band | to reach | limit by traffic | |",
        "|---|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    problem = None
    for row in data["rows"]:
        if row["problem"] != problem:
            problem = row["problem"]
            lines.append(f"| **{problem}** | | | | | | | | |")
        limit = "" if row["limit"] is None else f"{row['limit']:.2f}"
        cells = [
            row["title"],
            row["baseline"],
            f"{1e3 * row['seconds']:.1f}",
            f"{row['ratio']:.2f}",
            f"{row['low']:.2f} to {row['high']:.2f}",
            f"{row['band'][0]:.2f} to {row['band'][1]:.2f}",
            f"{row['reach']:.2f}",
            limit,
            "reached" if row["reached"] else "**missed**",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *_floor_lines(data["floors"])]
    lines += [
        f"Ratio of step times, median over interleaved rounds of at least "
        f"{1e3 * data['round_seconds']:.0f} ms; band: 5 to 95 % of what the baseline shows against "
        f"a copy of itself. {where} ({data['machine']['processor']}, {threads}), load before "
        f"{data['load'][0]:.2f}; {versions}."
        + (
            " Others used the machine, too: the milliseconds are noise, "
            "and so is a ratio in its band."
            if data["busy"]
            else ""
        ),
    ]
    return "\n".join(lines) + "\n"


def _floor_lines(floors: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not floors:
        return
    yield "Stripped steps, timed in the same rounds: what the traffic alone takes on this machine."
    yield ""
    yield "| stripped step | against | ms | ratio | quartiles |"
    yield "|---|---|--:|--:|--:|"
    for row in floors:
        cells = [
            row["title"],
            row["baseline"],
            f"{1e3 * row['seconds']:.1f}",
            f"{row['ratio']:.2f}",
            f"{row['low']:.2f} to {row['high']:.2f}",
        ]
        yield f"| {' | '.join(cells)} |"
    yield ""


_NOT_VERSIONS = frozenset({"machine", "system", "device"})
