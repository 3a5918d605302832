"""`summary.md`, and the same tables between a README's markers."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from optim_bench.report._markers import replace_section
from optim_bench.results import FRAMEWORK_TITLES, LABELS


def summary_markdown(results: Mapping[str, Any]) -> str:
    """Return the verdicts and the tables as Markdown."""
    return "\n".join(_lines(results)) + "\n"


def update_readme(path: Path, results: Mapping[str, Any]) -> None:
    """Put the summary between the markers of a Markdown file.

    Raises:
        BenchError: the file cannot be read, or does not hold each marker once and in order.
    """
    replace_section(path, summary_markdown(results))


def _lines(results: Mapping[str, Any]) -> Iterator[str]:
    budget = results["protocol"]["budget"]
    for sentence in results["headline"]:
        yield f"- {sentence}"
    yield ""
    for caution in results["cautions"]:
        yield f"> {caution}"
        yield ">"
    yield (
        f"> Budget for every optimizer on every workload: {budget['grid_points']} learning rates "
        f"x {budget['tuning_seeds']} tuning seeds (and up to {budget['extensions']} more rates "
        f"where the best is at the edge), then {budget['fresh_seeds']} fresh seeds. "
        "Ratio: test loss to equally tuned AdamW, below 1 is better, with its 95 % t-interval."
    )
    comparisons = {c["name"]: c for c in results["comparisons"]}
    for framework, title in FRAMEWORK_TITLES.items():
        cells = [cell for cell in results["cells"] if cell["framework"] == framework]
        if cells:
            yield from ["", f"**{title}**", "", *_table(cells, comparisons)]
            yield from _search_table(results, framework)


def _table(cells: list[Mapping[str, Any]], comparisons: Mapping[str, Any]) -> Iterator[str]:
    yield (
        "| workload | optimizer | learning rate | test loss | ratio | 95 % interval | p (Holm) "
        "| seeds | loss at the default rate | state / parameters | verdict |"
    )
    yield "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|---|"
    for cell in cells:
        comparison = comparisons.get(cell["name"])
        fresh, rate = cell["fresh"], cell["tuning"]["selected"]
        columns = [
            cell["workload"],
            cell["title"],
            number(rate, "g"),
            number(fresh["mean"].get("test_loss"), ".4g"),
            *ratio_columns(comparison),
            f"{fresh['ok']}",
            number(cell["defaults"]["mean"].get("test_loss"), ".4g"),
            number(state_ratio(cell), ".3g"),
            LABELS[comparison["verdict"]] if comparison else "baseline",
        ]
        yield f"| {' | '.join(columns)} |"


def search_rows(results: Mapping[str, Any], framework: str) -> Iterator[dict[str, Any]]:
    """Give one row per comparison with the AdamW that had one more hyperparameter searched."""
    trials = {cell["name"]: len(cell["tuning"]["trials"]) for cell in results["cells"]}
    for found in results["searches"]:
        if found["framework"] != framework:
            continue
        for index, comparison in enumerate(found["comparisons"]):
            verdict = comparison["verdict"]
            yield {
                "workload": found["workload"] if index == 0 else "",
                "chosen": found["chosen"] if index == 0 else "",
                "chosen_trials": str(found["trials"]) if index == 0 else "",
                "title": comparison["title"],
                "trials": str(trials[comparison["name"]]),
                "numbers": [*ratio_columns(comparison), str(comparison["pairs"])],
                "kind": verdict if verdict in {"better", "worse"} else "withheld",
                "verdict": LABELS[verdict] + (", exploratory" if comparison["tests"] else ""),
            }


def _search_table(results: Mapping[str, Any], framework: str) -> Iterator[str]:
    rows = list(search_rows(results, framework))
    if not rows:
        return
    found = next(s for s in results["searches"] if s["framework"] == framework)
    names = " and ".join(found["searched"])
    yield ""
    yield (
        f"Against AdamW with {names} chosen on the tuning seeds among {len(found['labels'])} "
        "variants. It had all their trials, every other optimizer its own; exploratory, with "
        "Holm's correction over this table."
    )
    yield ""
    yield (
        "| workload | chosen AdamW | its trials | optimizer | trials | ratio | 95 % interval "
        "| p (Holm) | seeds | outcome |"
    )
    yield "|---|---|--:|---|--:|--:|--:|--:|--:|---|"
    for row in rows:
        cells = [row["workload"], row["chosen"], row["chosen_trials"], row["title"], row["trials"]]
        yield f"| {' | '.join([*cells, *row['numbers'], row['verdict']])} |"


def ratio_columns(comparison: Mapping[str, Any] | None) -> list[str]:
    """Return ratio, interval and adjusted p-value as text, empty where there is none."""
    if comparison is None or comparison["low"] is None:
        return ["", "", ""]
    return [
        f"{comparison['ratio']:.3f}",
        f"{comparison['low']:.3f} to {comparison['high']:.3f}",
        number(comparison["p_adjusted"], ".2g"),
    ]


def state_ratio(cell: Mapping[str, Any]) -> float | None:
    """Return bytes of optimizer state per byte of parameters."""
    if not cell["parameter_bytes"]:
        return None
    return cell["state_bytes"] / cell["parameter_bytes"]


def number(value: float | None, style: str) -> str:
    """Return a number as text, empty for None."""
    return "" if value is None else format(value, style)
