"""`report.html`: one page that needs nothing but itself."""

import functools
import json
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any

import vl_convert
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from optim_bench.report.pages._chart import VEGA_LITE
from optim_bench.report.pages._groups import GROUPS
from optim_bench.report.pages._markdown import (
    AGGREGATE_COLUMNS,
    AGGREGATE_NOTE,
    aggregate_rows,
    number,
    search_rows,
    state_ratio,
)
from optim_bench.report.pages._pack import as_written, pack
from optim_bench.report.pages._theme import THEMES, colour_of, marks_of, page_themes
from optim_bench.results.verdicts import (
    FRAMEWORK_TITLES,
    INTERVAL_NOTE,
    LABELS,
    chosen_text,
    has_interval,
    interval_text,
    judged_mean,
    other_metrics,
    ratio_columns,
    searched_in_words,
)

Results = Mapping[str, Any]

SIGNS = {"better": "▼", "worse": "▲", "no difference": "≈"}


def report_html(results: Results) -> str:
    """Return the page; the same results give the same text."""
    page, drawn = _page(results)
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    template = environment.from_string(_asset("report.html.j2"))
    return template.render(
        page=page,
        results=results,
        css=Markup(_asset("report.css")),  # noqa: S704 - our own file
        script=Markup(_asset("report.js")),  # noqa: S704 - our own file
        vega=Markup(_vega()),  # noqa: S704 - a pinned bundle
        results_json=_script_json(pack(as_written(results))),
        chart_json=_script_json(pack({"themes": page_themes(), "charts": drawn})),
    )


def _page(results: Results) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    baseline = results["protocol"]["baseline"]
    drawn: list[dict[str, Any]] = []
    sections: list[dict[str, Any]] = []
    for framework, title in FRAMEWORK_TITLES.items():
        cells = [cell for cell in results["cells"] if cell["framework"] == framework]
        if not cells:
            continue
        groups: list[dict[str, Any]] = []
        for group in GROUPS:
            found = list(group.draw(results, framework))
            heading = group.heading
            if found:
                groups.append(
                    {
                        "title": heading,
                        "explain": group.explain,
                        "wide": group.wide,
                        "charts": found,
                    }
                )
            for chart in found:
                spec = chart.spec(THEMES[0], baseline, legend=False, width="container")
                # The script adds it, in the theme of the moment.
                del spec["config"]
                entry = {"id": chart.name, "framework": framework, "spec": spec}
                drawn.append({**entry, "title": f"{heading}, {title}: {chart.title}"})
        sections.append(
            {
                "framework": framework,
                "title": title,
                "rows": (rows := list(_rows(results, cells))),
                "others": any(row["others"] for row in rows),
                "sentences": [
                    c["sentence"] for c in results["comparisons"] if c["framework"] == framework
                ],
                "aggregates": list(aggregate_rows(results, framework)),
                "searches": list(search_rows(results, framework)),
                "legend": list(_legend(cells, baseline)),
                "groups": groups,
            }
        )
    # Of a task of the user's own, the results know no file.
    asked = [
        "my_task.py:task" if facts.get("own") else f"--workload {facts['name']}"
        for facts in results["workloads"]
    ]
    page = {
        "title": _title(results),
        "method": _method(results),
        "aggregate_note": AGGREGATE_NOTE,
        "aggregate_columns": AGGREGATE_COLUMNS,
        "sections": sections,
        "provenance": list(_provenance(results)),
        "command": (
            "optim-bench run --tier standard "
            + " ".join(asked)
            + " \\\n    --optimizer adamw,b1=0.95 --optimizer my_package:my_factory"
            " --framework torch"
        ),
    }
    return page, drawn


# Their cautions say so, and a count of wins above that would be read alone.
_SAY_NOTHING = frozenset({"smoke", "quick"})


def _title(results: Results) -> str:
    verdicts = [c["verdict"] for c in results["comparisons"] if c["tests"] is not None]
    if not verdicts:
        return "No registered comparison with tuned AdamW"
    own = any(facts.get("own") for facts in results["workloads"])
    if results["protocol"]["tier"] in _SAY_NOTHING and not own:
        return "Equally tuned AdamW and others at smoke size: too small to say anything yet"
    counts = {name: verdicts.count(name) for name in ("better", "worse", "no difference")}
    rest = len(verdicts) - sum(counts.values())
    parts = [
        f"{counts['better']} better",
        f"{counts['worse']} worse",
        f"{counts['no difference']} without a detectable difference",
    ]
    if rest:
        parts.append(f"{rest} undecided")
    noun = "comparison" if len(verdicts) == 1 else "comparisons"
    return f"Against equally tuned AdamW, {len(verdicts)} {noun}: {', '.join(parts)}"


def _method(results: Results) -> str:
    budget = results["protocol"]["budget"]
    return (
        f"Every optimizer had the same search on every workload: {searched_in_words(budget)}, "
        "chosen by validation loss. What is shown is the "
        f"test loss of {budget['fresh_seeds']} fresh seeds, with the same initial parameters and "
        "batches for every optimizer. A verdict needs an exact sign-flip p-value below "
        f"{results['protocol']['alpha']:g} after Holm's correction over the tests registered for "
        f"the framework; intervals are Student's t on log-ratios. {INTERVAL_NOTE}"
        + (
            " Better has to hold against AdamW at its default learning rate, too."
            if budget["defaults"]
            else ""
        )
    )


def _rows(results: Results, cells: list[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    comparisons = {c["name"]: c for c in results["comparisons"]}
    for cell in cells:
        comparison = comparisons.get(cell["name"])
        verdict = comparison["verdict"] if comparison else "baseline"
        workload = cell["workload"]
        kind = verdict if verdict in {"better", "worse", "baseline"} else "withheld"
        yield {
            "workload": workload,
            "plain": plain_interval(comparison),
            "title": cell["title"],
            "numbers": [
                chosen_text(cell["tuning"]),
                number(judged_mean(cell), ".4g"),
                *ratio_columns(comparison),
                str(cell["fresh"]["ok"]),
                number(judged_mean(cell, "defaults"), ".4g"),
                number(state_ratio(cell), ".3g"),
            ],
            "others": other_metrics(cell),
            "kind": kind,
            "sign": SIGNS.get(verdict, ""),
            "verdict": LABELS.get(verdict, verdict),
        }


def plain_interval(comparison: Mapping[str, Any] | None) -> str:
    """Return the interval before Holm's correction, for a tooltip."""
    if comparison is None or not has_interval(comparison):
        return ""
    return f"95 % before Holm: {interval_text(comparison)}"


def _legend(cells: list[Mapping[str, Any]], baseline: str) -> Iterator[dict[str, Any]]:
    titles = {cell["label"]: cell["title"] for cell in cells}
    labels = list(titles)
    colours = {theme: colour_of(labels, baseline, theme) for theme in THEMES}
    marks = marks_of(labels, baseline)
    for label in labels:
        dash = " ".join(map(str, marks[label]["dash"]))
        colour = {theme: colours[theme][label] for theme in THEMES}
        yield {"label": label, "title": titles[label], "dash": dash, **colour}


def _provenance(results: Results) -> Iterator[tuple[str, str]]:
    protocol = results["protocol"]
    yield "Plan (SHA-256, fixed before the first run)", protocol["plan_sha256"]
    yield "Registered tests", ", ".join(protocol["family"]) or "none"
    yield "Runs", f"{results['runs']}, each with its own file in runs/"
    for facts in results["workloads"]:
        licence = f"; data: {facts['licence']}" if facts["licence"] else ""
        text = f"version {facts['version']}, {facts['kind']}: {facts['title']}{licence}"
        yield facts["name"], text
    horizons = {f"{cell['workload']} {cell['steps']}" for cell in results["cells"]}
    yield "Steps", ", ".join(sorted(horizons))
    for found in results["times"]:
        low, high = found["band"]
        name = f"Step times, {found['workload']} in {FRAMEWORK_TITLES[found['framework']]}"
        busy = "; the machine was busy, so these are noise" if found["busy"] else ""
        load = " and ".join(f"{value:.2f}" for value in found["load"])
        text = (
            f"{found['rounds']} interleaved rounds on {found['machine']['processor']}, load {load}"
        )
        yield name, f"{text}, AdamW against its copy {low:.2f} to {high:.2f}{busy}"
    for made in results.get("history", ()):
        at = f", commit {made['commit']}" if made["commit"] else ""
        text = f"{made['runs']} runs in {made['seconds']} s on {made['device']}, {made['executor']}"
        yield f"Made {made['started']}", f"{text}: {made['command']}{at}"
    for name, values in results["environment"].items():
        yield name, ", ".join(values)


def _script_json(data: Any) -> Markup:
    """Return JSON that cannot end the script element around it."""
    text = json.dumps(data, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))  # noqa: S704 - no "<" is left


@functools.cache
def _vega() -> str:
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", VEGA_LITE)
    return bundle.replace("</script", "<\\/script")


@functools.cache
def _asset(name: str) -> str:
    return (resources.files("optim_bench.report.pages") / "assets" / name).read_text(
        encoding="utf-8"
    )
