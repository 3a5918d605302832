"""Write `evidence/rules.md` and its charts from `evidence/rules.json`.

python packages/optim-bench/tools/rules_page.py
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import vl_convert
from numpy.typing import NDArray
from optim_bench.report.pages._chart import VEGA_LITE

EVIDENCE = Path(__file__).resolve().parents[1] / "evidence"
DEVELOPMENT = ("digits-noisy", "patches-denoise", "diamonds-mlp", "shakespeare-char")
SAMPLES, SEED = 10_000, 18
# Entries in the plan.
REGISTERED = 28
# What each hypothesis compares; the second is the one to beat.
PAIRS = (
    ("", "row_norm(0.7)", "AdamW 0.7"),
    ("", "row_sign(0.7, 1)", "AdamW 0.7"),
    ("H2", "row_norm(0.7)", "row_sign(0.7, 1)"),
    ("H3", "row_norm(innovation)", "row_norm(0.7)"),
    ("H3", "row_norm(innovation)", "AdamW 0.9"),
    ("H3", "row_norm(innovation)", "AdamW 0.7"),
    ("H4", "row_norm(alignment)", "row_norm(0.7)"),
    ("H5", "stac_row(0.7)", "AdamW 0.9"),
    ("H5", "STAC", "AdamW 0.9"),
)
VERSIONS = ("python", "numpy", "torch")
PAGE = """\
# One-buffer rules: a first look, and no verdict

The question, the rules and what would count are in [the plan](rules-plan.md), which was committed
before the runs. This page is made from `rules.json` by `tools/rules_page.py`.

What was run: {cells} cells (an entry on a workload), {runs} runs, {hours:.2f} core-hours, with
python {python}, torch {torch}, numpy {numpy}. Each cell has {rates} to {most} rates;
seeds for tuning: {tuning}, fresh: {fresh}, of the registered 2 and 4, at a fraction of the evidence
page's steps.

**The goal is neither met nor refuted: the held-out workloads were not run,** and no candidate was
chosen. The load of the machine cut the time, as the plan's notes say: {complete} of {registered}
registered entries are complete on the development workloads. With three seeds an interval of 95 %
covers about three cases in four, and it holds nothing of the noise of a search on one seed. Read
the figures as a reason to run more of one thing and less of another.

## Regret on the development workloads

Log test loss above the best entry of this table, in hundredths (1 is about 1 %), each at its own
tuned rate; the worst is bold. A dagger marks a search that ended at the edge of its grid. State is
in entries per parameter, the largest of the four.

{regrets}

![Regret by entry and workload](rules-figures/regret.svg)

![Worst regret against state](rules-figures/state.svg)

## How we read it

- Of the five, AdamW at b1 0.7 has the smallest worst regret; none of the three one-buffer rules
  comes near it.
- row_sign(0.7, 1) is within about 1 % of it on three workloads (loss ratios {sign_others}) and
  fails on patches-denoise ({sign_patches}): one tuning seed chose a rate next to one at which it
  does not train, and two of three fresh seeds ended at twice the loss of the third. A scale for
  each row does not make the sign safe at the rate that it prefers.
- H2 is undecided: without the sign the rule is behind row_sign(0.7, 1) on three workloads, and
  trains where that one fails. It is behind AdamW at 0.7 on all four ({norm}).
- H3 has no support in this form (one b1 a tensor, a memory of 20 steps, 0.9 at the start):
  its losses are those of the fixed 0.7 times {innovation}, every interval above 1,
  although the signal settles where theory says (tested in stam-core). With {innovation_state:.2f}
  state entries per parameter it also exceeds the limit of 1.05.
- Nothing is known on H1, H4 and H5: their entries or workloads did not run.

## By hypothesis

Ratio of test losses, below 1 where the first is better (95 % of the bootstrap).

{pairs}

{unfinished}
## What is missing

- the entries of the plan that are in no table, and for all of them the second tuning seed and the
  fourth fresh one;
- the choice of a candidate, the five held-out workloads, and with them the goal and H1;
- an int8 form, AdamW in 8 bits, the run of 2 million parameters.

To go on, on a machine with time (it repeats the {hours:.2f} core-hours of this page):

    python packages/optim-bench/tools/rules_study.py train STORE full development \\
        {workloads} 23:59
    python packages/optim-bench/tools/rules_study.py collect STORE full
"""
Losses = Mapping[str, Mapping[str, NDArray[np.float64]]]


def losses(results: Mapping[str, Any], workloads: Sequence[str]) -> Losses:
    """Return log test losses by workload and entry, one per fresh seed; inf where one diverged."""
    found: dict[str, dict[str, NDArray[np.float64]]] = {w: {} for w in workloads}
    for workload in workloads:
        for name, cell in results["cells"].get(workload, {}).items():
            values = [math.inf if x is None else math.log(x) for x in cell["test"]]
            found[workload][name] = np.array(values or [math.inf])
    return found


def complete(logs: Losses) -> list[str]:
    """Return the entries that are finished on every workload, in the order of the first."""
    first, *rest = logs.values()
    return [name for name in first if all(name in other for other in rest)]


def regrets(means: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> NDArray[np.float64]:
    """Return regrets, axes (workload, entry, ...): mean log loss less the smallest of `names`.

    Example:
        >>> regrets({"w": {"a": 1.0, "b": 3.0}}, ["a", "b"]).tolist()
        [[0.0, 2.0]]
    """
    table = np.array([[means[w][name] for name in names] for w in means])
    return table - table.min(axis=1, keepdims=True)


def resampled(logs: Losses, names: Sequence[str]) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Return bootstrap means, `SAMPLES` of them: the same draw of seeds for all entries."""
    rng = np.random.default_rng(SEED)
    found = {}
    for workload, entries in logs.items():
        seeds = len(entries[names[0]])
        drawn = rng.integers(0, seeds, (SAMPLES, seeds))
        found[workload] = {name: entries[name][drawn].mean(axis=1) for name in names}
    return found


def scores(logs: Losses) -> dict[str, dict[str, Any]]:
    """Return regrets, the worst of them and its interval for every complete entry."""
    names = complete(logs)
    if not names:
        return {}
    point = regrets({w: {n: logs[w][n].mean() for n in names} for w in logs}, names)
    worst = regrets(resampled(logs, names), names).max(axis=0)
    found = {}
    for i, name in enumerate(names):
        low, high = np.quantile(worst[i], [0.025, 0.975])
        found[name] = {
            "regrets": dict(zip(logs, point[:, i].tolist(), strict=True)),
            "worst": float(point[:, i].max()),
            "low": float(low),
            "high": float(high),
        }
    return found


def ratio(logs: Losses, workload: str, left: str, right: str) -> tuple[float, float, float] | None:
    """Return the ratio of two entries' losses with its interval; None where one is missing."""
    if not {left, right} <= set(logs[workload]):
        return None
    drawn = resampled({workload: logs[workload]}, [left, right])[workload]
    low, high = np.quantile(drawn[left] - drawn[right], [0.025, 0.975])
    point = logs[workload][left].mean() - logs[workload][right].mean()
    return math.exp(point), math.exp(low), math.exp(high)


def page(results: Mapping[str, Any]) -> str:
    """Return the page."""
    logs = losses(results, DEVELOPMENT)
    scored = dict(sorted(scores(logs).items(), key=lambda item: item[1]["worst"]))
    budget = results["budget"]
    facts = {
        "cells": sum(len(part) for part in results["cells"].values()),
        "runs": results["runs"],
        "hours": results["core_seconds"] / 3600,
        "rates": budget["grid_points"],
        "most": budget["grid_points"] + budget["extensions"],
        "tuning": budget["tuning_seeds"],
        "fresh": budget["fresh_seeds"],
        "complete": len(scored),
        "registered": REGISTERED,
        **_reading(results, logs),
        "regrets": "\n".join(_regret_table(results, scored)),
        "pairs": "\n".join(_pair_table(logs)),
        "unfinished": "\n".join(_unfinished(logs, scored)),
        "workloads": ",".join(DEVELOPMENT),
    }
    return PAGE.format(**facts, **{n: results["environment"][n] for n in VERSIONS})


def _reading(results: Mapping[str, Any], logs: Losses) -> dict[str, Any]:
    """Return the figures in the text; what the text makes of them is about the first look."""

    def ratios(left: str, right: str, workloads: Sequence[str] = DEVELOPMENT) -> str:
        found = [ratio(logs, workload, left, right) for workload in workloads]
        return ", ".join(f"{x[0]:.3f}" if x else "not run" for x in found)

    others = [w for w in DEVELOPMENT if w != "patches-denoise"]
    return {
        "sign_others": ratios("row_sign(0.7, 1)", "AdamW 0.7", others),
        "sign_patches": ratios("row_sign(0.7, 1)", "AdamW 0.7", ["patches-denoise"]),
        "norm": ratios("row_norm(0.7)", "AdamW 0.7"),
        "innovation": ratios("row_norm(innovation)", "row_norm(0.7)"),
        "innovation_state": _state(results, "row_norm(innovation)"),
    }


def _regret_table(results: Mapping[str, Any], scored: Mapping[str, Any]) -> list[str]:
    lines = ["| entry | " + " | ".join(DEVELOPMENT) + " | worst (95 %) | state |"]
    lines.append("|---|" + "--:|" * (len(DEVELOPMENT) + 2))
    for name, score in scored.items():
        shown = []
        for workload, value in score["regrets"].items():
            text = f"{100 * value:.1f}"
            text = f"**{text}**" if value == score["worst"] else text
            shown.append(text + ("†" if results["cells"][workload][name]["under_tuned"] else ""))
        interval = (
            f"{100 * score['worst']:.1f} ({100 * score['low']:.1f} to {100 * score['high']:.1f})"
        )
        lines.append(
            f"| {name} | " + " | ".join(shown) + f" | {interval} | {_state(results, name):.2f} |"
        )
    return lines


def _state(results: Mapping[str, Any], name: str) -> float:
    return max(results["cells"][w][name]["state"] for w in DEVELOPMENT)


def _pair_table(logs: Losses) -> list[str]:
    lines = ["| | comparison | " + " | ".join(DEVELOPMENT) + " |"]
    lines.append("|---|---|" + "--:|" * len(DEVELOPMENT))
    for hypothesis, left, right in PAIRS:
        shown = []
        for workload in DEVELOPMENT:
            found = ratio(logs, workload, left, right)
            shown.append("not run" if found is None else "{:.3f} ({:.3f} to {:.3f})".format(*found))
        if set(shown) != {"not run"}:
            lines.append(f"| {hypothesis} | {left} to {right} | " + " | ".join(shown) + " |")
    return lines


def _unfinished(logs: Losses, scored: Mapping[str, Any]) -> list[str]:
    names = [n for n in dict.fromkeys(n for part in logs.values() for n in part) if n not in scored]
    if not names:
        return []
    lines = ["## Not finished on every workload", ""]
    lines.append(
        "Geometric mean of the test loss over the fresh seeds; such entries have no score."
    )
    lines += ["", "| entry | " + " | ".join(DEVELOPMENT) + " |"]
    lines.append("|---|" + "--:|" * len(DEVELOPMENT))
    for name in names:
        shown = [f"{math.exp(logs[w][name].mean()):.4g}" if name in logs[w] else "" for w in logs]
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return [*lines, ""]


def charts(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the Vega-Lite specifications by file name."""
    scored = scores(losses(results, DEVELOPMENT))
    order = sorted(scored, key=lambda name: scored[name]["worst"])
    cells = [
        {"entry": n, "workload": w, "regret": 100 * r, "worst": r == scored[n]["worst"]}
        for n in order
        for w, r in scored[n]["regrets"].items()
    ]
    points = [
        {"entry": n, "state": _state(results, n)}
        | {key: 100 * scored[n][key] for key in ("worst", "low", "high")}
        for n in order
    ]
    entry = {"field": "entry", "type": "nominal", "sort": order, "title": None}
    place = {"field": "workload", "type": "nominal", "sort": list(DEVELOPMENT), "title": None}
    place["axis"] = {"labelAngle": 0, "orient": "top"}
    state = {"field": "state", "type": "quantitative", "title": "state entries per parameter"}
    title = "worst regret (hundredths of log loss)"
    return {
        "regret.svg": {
            "width": 480,
            "data": {"values": cells},
            "encoding": {"y": entry, "x": place},
            "layer": [
                {
                    "mark": "rect",
                    "encoding": {
                        "color": {
                            "field": "regret",
                            "type": "quantitative",
                            "scale": {"range": ["#f7fbff", "#9ecae1"]},
                            "title": "regret",
                        },
                        "stroke": {
                            "condition": {"test": "datum.worst", "value": "black"},
                            "value": None,
                        },
                    },
                },
                {
                    "mark": "text",
                    "encoding": {
                        "text": {"field": "regret", "type": "quantitative", "format": ".1f"}
                    },
                },
            ],
        },
        "state.svg": {
            "width": 480,
            "height": 300,
            "data": {"values": points},
            "encoding": {"x": state},
            "layer": [
                {
                    "mark": "rule",
                    "encoding": {
                        "y": {"field": "low", "type": "quantitative", "title": title},
                        "y2": {"field": "high"},
                    },
                },
                {
                    "mark": {"type": "point", "filled": True},
                    "encoding": {"y": {"field": "worst", "type": "quantitative"}},
                },
                {
                    "mark": {"type": "text", "align": "left", "dx": 6, "fontSize": 9},
                    "encoding": {
                        "y": {"field": "worst", "type": "quantitative"},
                        "text": {"field": "entry"},
                    },
                },
            ],
        },
    }


def main() -> None:
    """Write the page and the charts."""
    results = json.loads((EVIDENCE / "rules.json").read_text(encoding="utf-8"))
    (EVIDENCE / "rules.md").write_text(page(results), encoding="utf-8")
    folder = EVIDENCE / "rules-figures"
    folder.mkdir(exist_ok=True)
    for name, chart in charts(results).items():
        svg = vl_convert.vegalite_to_svg({"background": "white", **chart}, vl_version=VEGA_LITE)
        (folder / name).write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
