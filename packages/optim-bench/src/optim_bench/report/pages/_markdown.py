"""`summary.md`, and the same tables between a README's markers."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from optim_bench.report.pages._markers import replace_section
from optim_bench.results.verdicts import (
    FRAMEWORK_TITLES,
    INTERVAL_NOTE,
    LABELS,
    chosen_text,
    judged_mean,
    ratio_columns,
    searched_in_words,
)

AGGREGATE_NOTE = (
    "Conditional on these workloads, and against AdamW at its selected rate, so wins that are not "
    "confirmed count as they are. Interquartile mean of the log-ratio as a ratio; chance that a "
    "seed is better than AdamW's; percentile intervals of seeded paired bootstraps, over seeds and "
    "over workloads, too narrow for few of either."
)
AGGREGATE_COLUMNS = (
    "ratio",
    "95 %, other seeds",
    "95 %, other workloads",
    "chance of improvement",
    "95 % interval",
)


def summary_markdown(results: Mapping[str, Any]) -> str:
    """Return the verdicts and the tables as Markdown."""
    return "\n".join([*_words(results), *_tables(results)]) + "\n"


def tables_markdown(results: Mapping[str, Any]) -> str:
    """Return the tables of the summary alone."""
    return "\n".join(_tables(results)).lstrip() + "\n"


def update_readme(path: Path, results: Mapping[str, Any]) -> None:
    """Put the summary between the markers of a Markdown file.

    Raises:
        BenchError: the file cannot be read, or does not hold each marker once and in order.
    """
    replace_section(path, summary_markdown(results))


def _words(results: Mapping[str, Any]) -> Iterator[str]:
    budget = results["protocol"]["budget"]
    for sentence in results["headline"]:
        yield f"- {sentence}"
    yield ""
    for caution in results["cautions"]:
        yield f"> {caution}"
        yield ">"
    yield (
        f"> Budget for every optimizer on every workload: {searched_in_words(budget)}, then "
        f"{budget['fresh_seeds']} fresh seeds. Losses are geometric means over them. "
        f"Ratio: test loss to equally tuned AdamW, below 1 is better. {INTERVAL_NOTE}"
    )


def _tables(results: Mapping[str, Any]) -> Iterator[str]:
    comparisons = {c["name"]: c for c in results["comparisons"]}
    for framework, title in FRAMEWORK_TITLES.items():
        cells = [cell for cell in results["cells"] if cell["framework"] == framework]
        if cells:
            yield from ["", f"**{title}**", "", *_table(cells, comparisons)]
            yield from _aggregate_table(results, framework)
            yield from _search_table(results, framework)


def _table(cells: list[Mapping[str, Any]], comparisons: Mapping[str, Any]) -> Iterator[str]:
    yield (
        "| workload | optimizer | learning rate | test loss | ratio | interval (Holm) | p (Holm) "
        "| seeds | loss at the default rate | state / parameters | verdict |"
    )
    yield "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|---|"
    for cell in cells:
        comparison = comparisons.get(cell["name"])
        columns = [
            cell["workload"],
            cell["title"],
            chosen_text(cell["tuning"]),
            number(judged_mean(cell), ".4g"),
            *ratio_columns(comparison),
            f"{cell['fresh']['ok']}",
            number(judged_mean(cell, "defaults"), ".4g"),
            number(state_ratio(cell), ".3g"),
            LABELS[comparison["verdict"]] if comparison else "baseline",
        ]
        yield f"| {' | '.join(columns)} |"


def aggregate_rows(results: Mapping[str, Any], framework: str) -> Iterator[list[str]]:
    """Give one row per optimizer that has a result on every real workload, of several."""
    for row in results["aggregates"]:
        if row["framework"] == framework and len(results["workloads"]) > 1:
            ratio, chance = row["interquartile_ratio"], row["probability_of_improvement"]
            tasks = row["interquartile_ratio_over_workloads"]
            yield [
                row["title"],
                number(ratio["value"], ".3f"),
                f"{number(ratio['low'], '.3f')} to {number(ratio['high'], '.3f')}",
                f"{number(tasks['low'], '.3f')} to {number(tasks['high'], '.3f')}" if tasks else "",
                f"{100 * chance['value']:.0f} %",
                f"{100 * chance['low']:.0f} to {100 * chance['high']:.0f} %",
            ]


def _aggregate_table(results: Mapping[str, Any], framework: str) -> Iterator[str]:
    rows = list(aggregate_rows(results, framework))
    if rows:
        yield from ["", f"Over all real workloads. {AGGREGATE_NOTE}", ""]
        yield f"| optimizer | {' | '.join(AGGREGATE_COLUMNS)} |"
        yield "|---|--:|--:|--:|--:|--:|"
        yield from (f"| {' | '.join(row)} |" for row in rows)


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


def state_ratio(cell: Mapping[str, Any]) -> float | None:
    """Return bytes of optimizer state per byte of parameters."""
    if not cell["parameter_bytes"]:
        return None
    return cell["state_bytes"] / cell["parameter_bytes"]


def number(value: float | None, style: str) -> str:
    """Return a number as text, empty for None."""
    return "" if value is None else format(value, style)
