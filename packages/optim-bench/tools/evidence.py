"""Train what the evidence page needs, and build the page.

    python packages/optim-bench/tools/evidence.py STORES [--no-train]

STORES gets one folder per framework and workload. Training takes a day on one core; it resumes, and
finished runs are never repeated. The page is built from the workloads that are complete, whatever
they show; with `--no-train` nothing is trained before. What is compared, and which pairs the page
asks about, is fixed in this file.
"""

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from optim_bench.campaign import progress_of, run_campaign
from optim_bench.catalog import Request, build_plan
from optim_bench.executors import DEFAULT_TRAINER, make_executor
from optim_bench.protocol import ALPHA, Phase, Plan
from optim_bench.records import FRAMEWORKS, RunRecord
from optim_bench.report import replace_section, summary_markdown
from optim_bench.report._figures import figures
from optim_bench.report._groups import all_charts
from optim_bench.results import (
    FRAMEWORK_TITLES,
    LABELS,
    build_results,
    change_in_words,
    validate_results,
)
from optim_bench.stats import compare_paired, holm
from optim_bench.store import Store, write_bytes

PACKAGE = Path(__file__).resolve().parents[1]
EVIDENCE = PACKAGE / "evidence"
TIER = "standard"
WORKLOADS = (
    "digits-cnn",
    "diamonds-mlp",
    "permuted-digits",
    "digits-noisy",
    "shifted-mlp",
    "patches-denoise",
    "shakespeare-char",
)
OPTIMIZERS: Mapping[str, tuple[str, ...]] = {
    "jax": (
        "stam",
        "stam_corrected",
        "stam_lite",
        "novograd",
        "adamw_b1_079",
        "adamw,b1=0.5",
        "adamw,b1=0.7",
        "adamw,b1=0.95",
        "adamw",
    ),
    "torch": ("stac", "stac_wide", "stac_plain", "stac_int8", "lion", "signum", "adamw"),
}
# Whose test loss is divided by whose, beyond the comparisons with AdamW.
PAIRS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "jax": (("stam_corrected", "stam"), ("stam", "adamw_b1_079"), ("stam_lite", "novograd")),
    "torch": (
        ("stac", "lion"),
        ("stac", "signum"),
        ("stac", "stac_plain"),
        ("stac_wide", "stac"),
        ("stac_int8", "stac"),
    ),
}
FIGURES = ("forest", "pareto-", "profile")
COMMAND = "python packages/optim-bench/tools/evidence.py evidence-runs"


def train(root: Path, jobs: int | None) -> None:
    """Run every comparison that is not complete."""
    for workload in WORKLOADS:
        for framework in FRAMEWORKS:
            request = Request(TIER, (workload,), OPTIMIZERS[framework], (framework,))
            plan = build_plan(request)
            store = Store(root / f"{framework}-{workload}")
            store.open()
            with store.exclusive():
                store.register(plan)
                workers = make_executor("process", DEFAULT_TRAINER, jobs=jobs)
                try:
                    run_campaign(plan, store, workers, lambda progress: None)
                finally:
                    workers.close()
            print(f"{framework} {workload}: complete", flush=True)  # noqa: T201


def collect(root: Path) -> tuple[Plan, dict[str, RunRecord]]:
    """Return one plan over the complete comparisons, with their records."""
    plans: list[Plan] = []
    records: dict[str, RunRecord] = {}
    for framework in FRAMEWORKS:
        for workload in WORKLOADS:
            store = Store(root / f"{framework}-{workload}")
            if not (store.root / "plan.json").is_file():
                continue
            plan, found = store.plan(), store.records()
            cells = progress_of(plan, found).cells.values()
            if all(cell.phase is Phase.DONE for cell in cells):
                plans.append(plan)
                records |= found
    if not plans:
        raise SystemExit(f"no comparison in {root} is complete")
    if len({(plan.tier, plan.budget) for plan in plans}) != 1:
        raise SystemExit(f"the comparisons in {root} have different budgets")
    return (
        Plan(
            tier=plans[0].tier,
            budget=plans[0].budget,
            cells=tuple(cell for plan in plans for cell in plan.cells),
            family=tuple(name for plan in plans for name in plan.family),
            titles={k: v for plan in plans for k, v in plan.titles.items()},
            families={k: v for plan in plans for k, v in plan.families.items()},
            workloads={k: v for plan in plans for k, v in plan.workloads.items()},
        ),
        records,
    )


def pairs(results: Mapping[str, Any], framework: str) -> list[dict[str, Any]]:
    """Compare the pairs of a framework on every workload that both have, Holm over all of them."""
    cells = {cell["name"]: cell for cell in results["cells"]}
    found: list[dict[str, Any]] = []
    for workload in WORKLOADS:
        for mine, other in PAIRS[framework]:
            sides = [cells.get(f"{workload}/{framework}/{label}") for label in (mine, other)]
            if sides[0] is None or sides[1] is None:
                continue
            one, two = (_losses(side) for side in sides if side is not None)
            paired = compare_paired(one, two)
            tuned = not any(side["tuning"]["under_tuned"] for side in sides if side is not None)
            whole = all(_is_whole(side) for side in sides if side is not None)
            found.append(
                {
                    "workload": workload,
                    "title": sides[0]["title"],
                    "other": sides[1]["title"],
                    "ratio": _exp(paired.log_ratio),
                    "low": _exp(paired.low),
                    "high": _exp(paired.high),
                    "p_value": paired.p_value,
                    "pairs": paired.pairs,
                    "tuned": tuned,
                    "whole": whole,
                }
            )
    adjusted = holm([1.0 if row["p_value"] is None else row["p_value"] for row in found])
    for row, value in zip(found, adjusted, strict=True):
        row["p_adjusted"] = value
        row["outcome"] = _outcome(row)
    return found


def _is_whole(cell: Mapping[str, Any]) -> bool:
    tuning, fresh = cell["tuning"], cell["fresh"]
    # Where every rate diverged there is none to run on the fresh seeds, so none is missing.
    due = tuning["selected"] is not None or not tuning["complete"]
    return not (tuning["failed"] or fresh["failed"] or (due and fresh["missing"]))


def _outcome(row: Mapping[str, Any]) -> str:
    if not row["whole"]:
        return "incomplete"
    if row["ratio"] is None:
        return "diverged, not ranked"
    if not row["tuned"]:
        return "under-tuned, not ranked"
    if row["p_adjusted"] > ALPHA:
        return "no detectable difference"
    return "lower" if row["ratio"] < 1 else "higher"


def _losses(cell: Mapping[str, Any]) -> dict[int, float]:
    return {
        run["seed"]: math.inf if run["test_loss"] is None else run["test_loss"]
        for run in cell["fresh"]["runs"]
        if run["status"] != "failed"
    }


def _exp(value: float | None) -> float | None:
    return None if value is None else math.exp(value)


def verdicts(results: Mapping[str, Any]) -> str:
    """Return what the registered tests found, better and not better alike."""
    lines: list[str] = []
    for framework in FRAMEWORKS:
        mine = [c for c in results["comparisons"] if c["framework"] == framework]
        registered = [c for c in mine if c["tests"] is not None]
        if not registered:
            continue
        workloads = list(dict.fromkeys(c["workload"] for c in registered))
        heading = (
            f"{FRAMEWORK_TITLES[framework]}, test loss relative to equally tuned AdamW "
            f"(95 % interval; verdict after Holm over {registered[0]['tests']} tests):"
        )
        lines += ["", heading, ""]
        lines.append(f"| | {' | '.join(workloads)} | state / parameters |")
        lines.append(f"|---|{'---|' * len(workloads)}--:|")
        for label in dict.fromkeys(c["label"] for c in registered):
            by_workload = {c["workload"]: c for c in registered if c["label"] == label}
            cells = [c for c in results["cells"] if c["framework"] == framework]
            state = [
                c["state_bytes"] / c["parameter_bytes"]
                for c in cells
                if c["label"] == label and c["workload"] in by_workload
            ]
            row = [by_workload[workloads[0]]["title"]]
            row += [_verdict(by_workload[workload]) for workload in workloads]
            lines.append(f"| {' | '.join([*row, _range(state)])} |")
    return "\n".join(lines[1:]) + "\n"


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.3g}", f"{max(values):.3g}"
    return low if low == high else f"{low} to {high}"


def _verdict(comparison: Mapping[str, Any]) -> str:
    label = LABELS[comparison["verdict"]]
    if comparison["low"] is None:
        return label
    interval = f"{comparison['low']:.2f} to {comparison['high']:.2f}"
    strong = f"**{label}**" if comparison["verdict"] in {"better", "worse"} else label
    return f"{comparison['ratio']:.2f} ({interval}) {strong}"


def page(results: Mapping[str, Any], figure_names: Sequence[str]) -> str:
    """Return the evidence page; it says nothing that is not in the results."""
    return "\n".join(_page(results, figure_names)) + "\n"


def _page(results: Mapping[str, Any], figure_names: Sequence[str]) -> Iterator[str]:
    budget, facts = results["protocol"]["budget"], results["environment"]
    versions = ", ".join(
        f"{n} {' and '.join(facts[n])}" for n in ("python", "jax", "optax", "torch") if n in facts
    )
    yield "# Evidence"
    yield ""
    yield (
        f"One `{results['protocol']['tier']}`-tier comparison: {budget['grid_points']} learning "
        f"rates x {budget['tuning_seeds']} tuning seeds for every optimizer on every workload (and "
        f"up to {budget['extensions']} more rates at an edge), then {budget['fresh_seeds']} fresh "
        f"seeds; {results['runs']:,} runs with {versions}. Everything on this page is made from "
        "`results.json` beside it, by"
    )
    yield from ["", f"    {COMMAND}", ""]
    yield (
        "which also trains what is missing. The workloads are those that were complete when the "
        "page was built; which ones take part is decided by time, never by their results."
    )
    yield ""
    for framework in FRAMEWORKS:
        cells = [c for c in results["cells"] if c["framework"] == framework]
        done = list(dict.fromkeys(c["workload"] for c in cells))
        rest = [name for name in WORKLOADS if name not in done]
        missing = f"; not complete, so not here: {', '.join(rest)}" if rest else ""
        listed = ", ".join(done) or "none"
        yield f"- {FRAMEWORK_TITLES[framework]}: {listed}{missing}."
    yield ""
    yield (
        "A verdict of better has to hold against AdamW at the learning rate that its search chose "
        "and against AdamW at its default rate: three tuning seeds can mislead a search, and "
        "everybody has the default. Where only the first holds, the table says `not confirmed`. "
        "The rule came after the first workload had shown the need for it, and can only withdraw "
        "wins."
    )
    yield from ["", "## In short", ""]
    yield from (f"- {sentence}" for sentence in results["headline"])
    yield from (f"- {sentence}" for sentence in _searched_in_short(results))
    yield from ["", "## Against equally tuned AdamW", "", verdicts(results).rstrip()]
    yield from _losing(results)
    yield from _searched(results)
    for framework in FRAMEWORKS:
        yield from _pair_table(results, framework)
    yield from ["", "## Figures", ""]
    yield from (f"![{Path(name).stem}](figures/{name})" for name in figure_names)
    yield from ["", "## Every number", "", summary_markdown(results).rstrip()]


def _searched_in_short(results: Mapping[str, Any]) -> Iterator[str]:
    found = [(s, c) for s in results["searches"] for c in s["comparisons"] if c["tests"]]
    for title in dict.fromkeys(c["title"] for _, c in found):
        parts: list[str] = []
        for verdict, label in LABELS.items():
            names = [
                s["workload"] for s, c in found if (c["title"], c["verdict"]) == (title, verdict)
            ]
            parts += [f"{label} on {', '.join(names)}"] if names else []
        searched = " and ".join(found[0][0]["searched"])
        yield f"{title} against AdamW with {searched} tuned as well: {'; '.join(parts)}."


def _losing(results: Mapping[str, Any]) -> Iterator[str]:
    registered = [c for c in results["comparisons"] if c["tests"] is not None]
    better = [c["sentence"] for c in registered if c["verdict"] == "better"]
    yield from ["", f"### What is better ({len(better)} of {len(registered)} tests)", ""]
    yield from [f"- {sentence}" for sentence in better] or ["Nothing."]
    rest = len(registered) - len(better)
    yield from ["", f"### What is not better ({rest} of {len(registered)} tests)"]
    for verdict, label in LABELS.items():
        found = [c["sentence"] for c in registered if c["verdict"] == verdict != "better"]
        if found:
            yield from ["", f"{label.capitalize()}:", ""]
            yield from (f"- {sentence}" for sentence in found)


def _searched(results: Mapping[str, Any]) -> Iterator[str]:
    if not results["searches"]:
        return
    yield from ["", "## STAM against AdamW tuned over b1 as well", ""]
    yield (
        "AdamW's b1 was chosen among its variants on the tuning seeds, which gave it the trials of "
        "all of them; STAM had its own grid. What the choice was worth to AdamW itself is in the "
        "second table: a choice on few tuning seeds can be a bad one, and a win over it then says "
        "little. Exploratory; Holm over this comparison in all workloads."
    )
    rows = [(s, c) for s in results["searches"] for c in s["comparisons"]]
    for heading, wanted in (("ours", True), ("AdamW at its own b1 of 0.9", False)):
        yield from ["", f"Test loss of {heading} relative to AdamW with b1 chosen:", ""]
        yield "| workload | b1 chosen | optimizer | ratio | 95 % interval | p (Holm) | outcome |"
        yield "|---|---|---|--:|--:|--:|---|"
        for search, c in rows:
            if (c["tests"] is not None) != wanted or not (wanted or c["label"] == "adamw"):
                continue
            outcome = LABELS[c["verdict"]]
            yield (
                f"| {search['workload']} | `{search['chosen']}` | {c['title']} | "
                f"{_numbers(c)} | {outcome} |"
            )


def _pair_table(results: Mapping[str, Any], framework: str) -> Iterator[str]:
    rows = pairs(results, framework)
    if not rows:
        return
    yield from ["", f"## Among each other, {FRAMEWORK_TITLES[framework]}", ""]
    yield f"Test loss of the one relative to the other, same seeds; Holm over {len(rows)} tests."
    yield from ["", "| workload | one | other | ratio | 95 % interval | p (Holm) | outcome |"]
    yield "|---|---|---|--:|--:|--:|---|"
    for row in rows:
        outcome = row["outcome"]
        if outcome in {"lower", "higher"}:
            outcome = f"**{outcome}**: {change_in_words(row['ratio'])}"
        yield (
            f"| {row['workload']} | {row['title']} | {row['other']} | {_numbers(row)} | {outcome} |"
        )


def _numbers(row: Mapping[str, Any]) -> str:
    if row["low"] is None:
        return " | | "
    p = "" if row["p_adjusted"] is None else f"{row['p_adjusted']:.2g}"
    return f"{row['ratio']:.3f} | {row['low']:.3f} to {row['high']:.3f} | {p}"


def figure_names(results: Mapping[str, Any]) -> list[str]:
    """Return the figures of the page, in its order."""
    return [
        f"{chart.name}.svg"
        for framework in FRAMEWORKS
        for chart in all_charts(results, framework)
        if chart.name.startswith(FIGURES)
    ]


def write(results: Mapping[str, Any]) -> None:
    """Write the evidence folder and the package README's section."""
    folder = EVIDENCE / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    names = figure_names(results)
    for old in folder.glob("*.svg"):
        if old.name not in names:
            old.unlink()
    for name, content in figures(results, FIGURES):
        if name in names:
            write_bytes(folder / name, content)
    text = json.dumps(results, sort_keys=True, separators=(",", ":"), allow_nan=False)
    write_bytes(EVIDENCE / "results.json", (text + "\n").encode())
    write_bytes(EVIDENCE / "README.md", page(results, names).encode())
    replace_section(PACKAGE / "README.md", verdicts(results), "evidence")


def main() -> None:
    """Train and build."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("stores", type=Path, help="folder of the comparisons")
    parser.add_argument("--no-train", action="store_true", help="build from what is there")
    parser.add_argument("--jobs", type=int, help="runs at a time")
    given = parser.parse_args()
    if not given.no_train:
        train(given.stores, given.jobs)
    plan, records = collect(given.stores)
    results = build_results(plan, records)
    if problems := validate_results(json.loads(json.dumps(results, allow_nan=False))):
        raise SystemExit(problems[0])
    write(results)


if __name__ == "__main__":
    main()
