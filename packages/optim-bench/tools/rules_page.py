"""Write `evidence/rules.md` and its charts from `evidence/rules.json`.

python packages/optim-bench/tools/rules_page.py
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import vl_convert
from optim_bench.report.pages._chart import VEGA_LITE
from rules_charts import charts
from rules_prose import PAGE, reading
from rules_scores import DEVELOPMENT, HELD_OUT, losses, ratio, scores, state

EVIDENCE = Path(__file__).resolve().parents[1] / "evidence"
# Entries in the plan, of its three rounds.
REGISTERED = 46
# What each hypothesis compares; the second is the one to beat.
PAIRS = (
    ("H1", "row_sign(0.7, 1)", "AdamW 0.7"),
    ("H2", "row_norm(0.7)", "row_sign(0.7, 1)"),
    ("H3", "row_norm(innovation)", "row_norm(0.7)"),
    ("H3", "AdamW innovation", "AdamW 0.9"),
    ("H4", "row_norm(alignment)", "row_norm(0.7)"),
    ("H5", "stac_row(0.7)", "AdamW 0.9"),
    ("H5", "STAC", "AdamW 0.9"),
    ("H6", "factored(0.7)", "AdamW 0.7"),
    ("H6", "factored(0.8)", "AdamW 0.8"),
    ("H6", "factored(0.9)", "AdamW 0.9"),
    ("H7", "look(0.9)", "AdamW 0.8"),
    ("H7", "cautious(0.9)", "AdamW 0.8"),
    ("H7", "root(0.8)", "AdamW 0.8"),
    ("H8", "first(0.8)", "AdamW 0.8"),
    ("H8", "first_root(0.8)", "AdamW 0.8"),
    ("H8", "first_cautious(0.9)", "AdamW 0.8"),
    ("", "first_root(0.8)", "AdamW 0.7"),
    ("", "first_root(0.8)", "STAC"),
)
VERSIONS = ("python", "numpy", "torch")


def page(results: Mapping[str, Any], large: Sequence[Mapping[str, Any]]) -> str:
    """Return the page, from the study's results and those of the larger model."""
    budget, cells = results["budget"], results["cells"]
    logs = {part: losses(results, part) for part in (DEVELOPMENT, HELD_OUT)}
    facts = {
        "cells": sum(len(part) for part in cells.values()),
        "runs": results["runs"],
        "hours": results["core_seconds"] / 3600,
        "rates": budget["grid_points"],
        "most": budget["grid_points"] + budget["extensions"],
        "tuning": budget["tuning_seeds"],
        "fresh": budget["fresh_seeds"],
        "complete": len(scores(logs[DEVELOPMENT])),
        "registered": REGISTERED,
        "development": "\n".join(regret_table(results, DEVELOPMENT)),
        "held_out": "\n".join(regret_table(results, HELD_OUT)),
        "pairs": "\n\n".join("\n".join(pair_table(logs[part])) for part in logs),
        "diverged": diverged(results),
        "large": "\n".join(large_table(large)),
        "parameters": large[0]["parameters"] / 1e6,
        **reading(results),
        **{name: results["environment"][name] for name in VERSIONS},
    }
    return PAGE.format(**facts)


def regret_table(results: Mapping[str, Any], workloads: Sequence[str]) -> list[str]:
    """Return the lines of a table of regrets in hundredths, the smallest worst one first."""
    lines = ["| entry | " + " | ".join(workloads) + " | worst (95 %) | state |"]
    lines.append("|---|" + "--:|" * (len(workloads) + 2))
    scored = scores(losses(results, workloads))
    for name, score in sorted(scored.items(), key=lambda item: item[1]["worst"]):
        shown = []
        for workload, value in score["regrets"].items():
            text = f"**{100 * value:.1f}**" if value == score["worst"] else f"{100 * value:.1f}"
            shown.append(text + ("†" if results["cells"][workload][name]["under_tuned"] else ""))
        worst, low, high = (f"{100 * score[key]:.1f}" for key in ("worst", "low", "high"))
        kept = state(results, name, workloads)
        lines.append(f"| {name} | {' | '.join(shown)} | {worst} ({low} to {high}) | {kept:.2f} |")
    return lines


def pair_table(logs: Mapping[str, Any]) -> list[str]:
    """Return the lines of a table of loss ratios by hypothesis."""
    lines = ["| | comparison | " + " | ".join(logs) + " |", "|---|---|" + "--:|" * len(logs)]
    for hypothesis, left, right in PAIRS:
        found = [ratio(logs, workload, left, right) for workload in logs]
        if any(found):
            shown = ["{:.3f} ({:.3f} to {:.3f})".format(*x) if x else "not run" for x in found]
            lines.append(f"| {hypothesis} | {left} to {right} | {' | '.join(shown)} |")
    return lines


def large_table(large: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of a table of the larger model, by entry: the rate with the best one."""
    lines = ["| entry | rates, with validation losses | test loss at the best | state entries |"]
    lines.append("|---|---|--:|--:|")
    for name in dict.fromkeys(run["entry"] for run in large):
        runs = sorted((run for run in large if run["entry"] == name), key=lambda run: run["rate"])
        shown = ", ".join(f"{run['rate']:g}: {run['metrics']['val_loss']:.3f}" for run in runs)
        best = min(runs, key=lambda run: run["metrics"]["val_loss"])
        kept = best["state_bytes"] / 4 / best["parameters"]
        lines.append(f"| {name} | {shown} | {best['metrics']['test_loss']:.3f} | {kept:.2f} |")
    return lines


def diverged(results: Mapping[str, Any]) -> str:
    """Return which entries diverged on a fresh seed, and where."""
    found = [
        f"{name} on {workload} ({sum(x is None for x in cell['test'])} of {len(cell['test'])})"
        for workload, entries in results["cells"].items()
        for name, cell in entries.items()
        if None in cell["test"]
    ]
    return "Fresh seeds that diverged: " + (", ".join(found) if found else "none") + "."


def main() -> None:
    """Write the page and the charts."""
    results = json.loads((EVIDENCE / "rules.json").read_text(encoding="utf-8"))
    large = json.loads((EVIDENCE / "rules-large.json").read_text(encoding="utf-8"))
    (EVIDENCE / "rules.md").write_text(page(results, large), encoding="utf-8")
    folder = EVIDENCE / "rules-figures"
    folder.mkdir(exist_ok=True)
    for name, chart in charts(results, large).items():
        svg = vl_convert.vegalite_to_svg({"background": "white", **chart}, vl_version=VEGA_LITE)
        (folder / name).write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
