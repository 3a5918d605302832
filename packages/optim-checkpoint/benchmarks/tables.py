"""Write the tables of RESULTS.md from the committed results beside this file.

    python benchmarks/tables.py --write

A test compares: the page shows what the JSON files hold, and nothing else.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parent / "RESULTS.md"
# What the contract of the package asks for: kind, contender, target, and what the row is called.
DIRECT = "load, staging=False"
FASTER = [
    ("save", "raw write and fsync", 0.85, "durable save against raw write and fsync"),
    ("save", "torch.save and fsync", 1.0, "durable save against torch.save and fsync"),
    ("save", "torch DCP and fsync", 1.8, "durable save against torch DCP and fsync"),
    ("save", "Orbax and fsync", 4.0, "durable save against Orbax and fsync"),
    ("load", "readinto, memory that is reused", 0.7, "verified load against readinto, warm memory"),
    ("load", "readinto, new tensors", 0.7, "verified load against readinto, new tensors"),
    (
        DIRECT,
        "readinto, memory that is reused",
        0.9,
        "verified load without staging against readinto, warm memory",
    ),
    # At most 1.1 times its time.
    (
        DIRECT,
        "safetensors and copy",
        0.91,
        "verified load without staging against safetensors load_file and copy",
    ),
    ("load", "safetensors and copy", 0.91, "verified load against safetensors load_file and copy"),
    (DIRECT, "torch DCP", 1.0, "verified load without staging against torch DCP"),
    (DIRECT, "Orbax", 1.0, "verified load without staging against Orbax"),
]
STALLS = {
    "share of the durable save": "stall of an async save, share of the durable save",
    "share of the durable save, DTensors": "the same of DTensors",
}
LARGE = HERE / "large.json"
TENSORS = 96


def verdict(reached: bool, by: str) -> str:
    """Return the last cell of a row."""
    return "reached" if reached else f"**missed** by {by}"


def benchmark_table(result: dict[str, Any]) -> str:
    """Return the ratios with their targets."""
    lines = ["| | target | measured | |", "|-|-|-|-|"]
    ratios = result["ratios"]
    for kind, name, target, label in FASTER:
        # What a result has not measured has no row.
        if name not in ratios.get(kind, {}):
            continue
        ratio = ratios[kind][name]
        shown = f"{ratio['median']:.2f}x ({ratio['low']:.2f} to {ratio['high']:.2f})"
        state = verdict(ratio["median"] >= target, f"{target - ratio['median']:.2f}")
        lines.append(f"| {label} | {target:g}x or more | {shown} | {state} |")
    for name, label in STALLS.items():
        if name in ratios["stall"]:
            stall = ratios["stall"][name]
            shown = f"{stall['median']:.2f} ({stall['low']:.2f} to {stall['high']:.2f})"
            state = verdict(stall["median"] <= 0.15, f"{stall['median'] - 0.15:.2f}")
            lines.append(f"| {label} | at most 0.15 | {shown} | {state} |")
    limit = 64 + result["mib"] / TENSORS
    extra = result["memory MiB"]["save"]
    state = verdict(extra <= limit, f"{extra - limit:.0f} MiB")
    label = "memory of a save beside the state"
    lines.append(f"| {label} | at most {limit:.0f} MiB | {extra:.1f} MiB | {state} |")
    if "restore, staging=False" in result["memory MiB"]:
        extra = result["memory MiB"]["restore, staging=False"]
        state = verdict(extra <= 64, f"{extra - 64:.0f} MiB")
        label = "memory of a restore without staging beside the state"
        lines.append(f"| {label} | at most 64 MiB | {extra:.1f} MiB | {state} |")
    return "\n".join([*lines, "", conditions(result)])


def many_table(result: dict[str, Any]) -> str:
    """Return what very many small tensors cost beside torch."""
    head = f"| {result['tensors']:,} tensors of 64 bytes | at most | processor time | time | |"
    lines = [head, "|-|-|-|-|-|"]
    for kind, limit, label in (
        ("save", 2.0, "save against torch.save and fsync"),
        ("load", 1.0, "restore against torch.load and load_state_dict"),
    ):
        cpu, wall = (result["ratios"][clock][kind] for clock in ("cpu", "wall"))
        shown = [f"{r['median']:.2f}x ({r['low']:.2f} to {r['high']:.2f})" for r in (cpu, wall)]
        state = verdict(cpu["median"] <= limit, f"{cpu['median'] - limit:.2f}")
        lines.append(f"| {label} | {limit:g}x | {' | '.join(shown)} | {state} |")
    before, after = result["load average"]
    rounds = f"Shares of torch's times, {result['rounds']} interleaved rounds"
    lines += ["", f"{rounds}, load average {before:g} to {after:g}."]
    return "\n".join(lines)


def incremental_table(result: dict[str, Any]) -> str:
    """Return what an incremental save writes and takes, and the stalls of a checkpointer."""
    first, *later = result["shares written"]
    written = f"{100 * first:.1f} %, then {100 * max(later):.1f} % at most"
    state = verdict(max(later) <= 0.05, f"{max(later) - 0.05:.3f}")
    lines = [
        f"| {result['mib']} MiB of which 1 % changes | at most | measured | |",
        "|-|-|-|-|",
        f"| bytes that incremental saves write, share of the state | 5 % | {written} | {state} |",
    ]
    for name, limit, label in (
        ("incremental", 1.0, "time of an incremental save from the second on, share of a full one"),
        (
            "stall, later save",
            0.15,
            "stall of an async save from the second on, share of a full one",
        ),
        ("stall, first save", None, "the same of the first save, which also allocates the copy"),
    ):
        ratio = result["ratios"][name]
        shown = f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"
        state = ""
        if limit is not None:
            state = verdict(ratio["median"] <= limit, f"{ratio['median'] - limit:.2f}")
        lines.append(f"| {label} | {'' if limit is None else f'{limit:g}'} | {shown} | {state} |")
    band, (before, after) = result["ratios"]["full, again"], result["load average"]
    noise = f"a full save against itself (A/A) {band['low']:.2f} to {band['high']:.2f}"
    rounds = (
        f"{result['rounds']} interleaved rounds; {noise}; load average {before:g} to {after:g}."
    )
    return "\n".join([*lines, "", rounds])


def conditions(result: dict[str, Any]) -> str:
    """Return the sentence that says what was measured where."""
    machine, bands = result["machine"], result["ratios"]["A/A"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    before, after = result["load average"]
    memory = result["memory MiB"]
    sentences = [
        f"{result['mib']} MiB in {TENSORS} tensors, {result['rounds']} interleaved rounds; medians",
        "of the ratios within a round and their middle half. The same bound against itself (A/A):",
        f"save {bands['save']['low']:.2f} to {bands['save']['high']:.2f},",
        f"load {bands['load']['low']:.2f} to {bands['load']['high']:.2f}.",
        f"{machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']},",
        f"load average {before:g} to {after:g}, Python {machine['python']}, {versions}.",
        f"Beside the state an async save takes {memory['async save']:.0f} MiB and a restore",
        f"{memory['restore']:.0f} MiB: one copy of it.",
    ]
    return " ".join(sentences)


def campaign_table(campaigns: dict[str, Any]) -> str:
    """Return the trial counts of the attacks."""
    lines = ["| attack or mutant | trials | lost, silently loaded or not caught |", "|-|-|-|"]
    for name, row in campaigns["campaigns"].items():
        notes = [f"{row[key]:,} {key}" for key in ("accepted",) if key in row]
        if "worst_ms" in row:
            notes.append(f"at worst {row['worst_ms']} ms and {row['worst_mib']} MiB")
        label = f"{name} ({'; '.join(notes)})" if notes else name
        lines.append(f"| {label} | {row['trials']:,} | 0 |")
    versions = ", ".join(f"{name} {version}" for name, version in campaigns["versions"].items())
    tail = f"Python {campaigns['python']}, Linux {campaigns['kernel']}, {versions}."
    return "\n".join([*lines, "", tail])


def peer_table(peers: dict[str, Any]) -> str:
    """Return how many optimizers of other packages resume."""
    counts = peers["counts"]
    versions = peers["versions"]
    labels = {
        "exact": "resumes bitwise",
        "as torch": "resumes as with torch's own load, which is not bitwise",
        "refused": "refused at `save`, by the path of what cannot be stored",
        "differs": "resumes as something else",
    }
    lines = [f"| optimizers of {_joined(versions)} | |", "|-|-|"]
    lines += [f"| {label} | {counts[kind]} |" for kind, label in labels.items()]
    lines.append(f"| not tried: need a closure or other arguments | {len(peers['not tried'])} |")
    return "\n".join(lines)


def _joined(versions: dict[str, str]) -> str:
    return " and ".join(f"{name} {v}" for name, v in versions.items() if name != "torch")


def tables() -> dict[str, str]:
    """Return every table by name."""
    results = [path for path in (HERE / "result.json", LARGE) if path.exists()]
    return {
        "benchmark": "\n\n".join(benchmark_table(json.loads(p.read_text())) for p in results),
        "many": many_table(json.loads((HERE / "many.json").read_text())),
        "incremental": "\n\n".join(
            incremental_table(json.loads(path.read_text()))
            for path in sorted(HERE.glob("incremental*.json"))
        ),
        "peers": peer_table(json.loads((HERE / "peers.json").read_text())),
        "campaigns": campaign_table(json.loads((HERE / "campaigns.json").read_text())),
    }


def with_tables(text: str) -> str:
    """Return a page with the tables between their marks."""
    for name, table in tables().items():
        begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
        head, _, rest = text.partition(begin)
        _, mark, tail = rest.partition(end)
        if not mark:
            raise ValueError(f"{PAGE.name} has no marks {begin} and {end}")
        text = f"{head}{begin}\n{table}\n{end}{tail}"
    return text


def main() -> None:
    """Check the page, or write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the tables into the page")
    args = parser.parse_args()
    text = PAGE.read_text(encoding="utf-8")
    wanted = with_tables(text)
    if args.write:
        PAGE.write_text(wanted, encoding="utf-8")
    elif wanted != text:
        sys.exit("RESULTS.md does not show the committed results: run with --write")


if __name__ == "__main__":
    main()
