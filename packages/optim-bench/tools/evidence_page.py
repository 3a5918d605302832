"""The evidence page: what the results of `evidence.py` say, as Markdown.

Every function takes the content of `results.json`; nothing on the page comes from elsewhere. Which
pairs of optimizers the page asks about, beyond the comparisons with AdamW, is fixed in this file.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from optim_bench.protocol import BASELINE
from optim_bench.records import FRAMEWORKS
from optim_bench.report.pages import tables_markdown
from optim_bench.report.pages._groups import GROUPS
from optim_bench.results.stats import compare_paired
from optim_bench.results.verdicts import FRAMEWORK_TITLES, LABELS, compare_pairs, fresh_losses

Item = Mapping[str, Any]

# Whose test loss is divided by whose.
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
# The committed numbers hold the intervals before Holm's correction.
EXPLAIN = {
    "Relative to equally tuned AdamW": (
        "Each line is a 95 % interval for one comparison, before the correction for several tests."
    )
}
# In JAX every optimizer has one or two buffers, which a line of the verdicts says.
FIGURES = ("forest", "pareto-torch", "profile")
COMMAND = "python packages/optim-bench/tools/evidence.py evidence-runs"
VERSIONS = ("python", "numpy", "jax", "optax", "stam-jax", "torch", "stac-torch")


def page(results: Item, workloads: Sequence[str]) -> str:
    """Return the page.

    Args:
        results: content of `results.json`.
        workloads: what the evidence is to cover, in the order of the page.
    """
    return "\n".join(_page(results, workloads)) + "\n"


def _page(results: Item, workloads: Sequence[str]) -> Iterator[str]:
    yield from ["# Evidence", ""]
    yield from _method(results, workloads)
    yield from ["", "## In short", ""]
    yield from (f"- {sentence}" for sentence in results["headline"])
    yield from (f"- {sentence}" for sentence in _searched_in_short(results))
    yield from ["", "## Against equally tuned AdamW", "", verdicts(results).rstrip()]
    yield from _losing(results)
    yield from _searched(results)
    for framework in FRAMEWORKS:
        yield from _pair_table(results, framework)
    yield from _worth(results)
    yield from _figures(results)
    yield from ["", "## Every number", ""]
    yield (
        "Ratio: test loss relative to equally tuned AdamW, with its 95 % t-interval; state / "
        "parameters: in bytes."
    )
    yield from ["", tables_markdown(results).rstrip()]


def _method(results: Item, workloads: Sequence[str]) -> Iterator[str]:
    budget, facts = results["protocol"]["budget"], results["environment"]
    versions = ", ".join(f"{n} {' and '.join(facts[n])}" for n in VERSIONS if n in facts)
    yield (
        f"One `{results['protocol']['tier']}`-tier comparison: {budget['grid_points']} learning "
        f"rates x {budget['tuning_seeds']} tuning seeds for every optimizer on every workload (and "
        f"up to {budget['extensions']} more rates at an edge), then {budget['fresh_seeds']} fresh "
        f"seeds; {results['runs']:,} runs with {versions}. Only the learning rate was searched, "
        "and AdamW's b1 in a section of its own; all else is as declared (`optim-bench show "
        "NAME`). Everything on this page is made from `results.json` beside it, by"
    )
    yield from ["", f"    {COMMAND}", ""]
    yield (
        "which also trains what is missing. The workloads are those that were complete when the "
        "page was built; which ones take part is decided by time, never by their results. A "
        "framework's tests are corrected together, so one more workload makes every test harder."
    )
    yield ""
    for framework in FRAMEWORKS:
        cells = [c for c in results["cells"] if c["framework"] == framework]
        done = list(dict.fromkeys(c["workload"] for c in cells))
        rest = [name for name in workloads if name not in done]
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
    yield ""
    yield "\n>\n".join(f"> {caution}" for caution in results["cautions"])


def verdicts(results: Item) -> str:
    """Return what the registered tests found, better and not better alike.

    The README of the package shows the same.
    """
    lines: list[str] = []
    for framework in FRAMEWORKS:
        mine = [c for c in results["comparisons"] if c["framework"] == framework]
        registered = [c for c in mine if c["tests"] is not None]
        if not registered:
            continue
        ours = {c["label"] for c in registered}
        heading = (
            f"{FRAMEWORK_TITLES[framework]}, test loss relative to equally tuned AdamW (95 % "
            f"interval; verdict after Holm over {registered[0]['tests']} tests):"
        )
        lines += ["", heading, ""]
        shown = [c for c in mine if c["label"] in ours]
        lines += _grid(results, [(c["workload"], c["title"], finding(c)) for c in shown])
        cells = [c for c in results["cells"] if c["framework"] == framework and c["label"] in ours]
        states = [
            _range([c["state_bytes"] / c["parameter_bytes"] for c in cells if c["label"] == label])
            for label in dict.fromkeys(c["label"] for c in shown)
        ]
        lines.append(f"| state / parameters | {' | '.join(states)} |")
        lines += _one_experiment(shown)
    return "\n".join(lines[1:]) + "\n"


def _grid(results: Item, entries: Sequence[tuple[str, str, str]]) -> list[str]:
    """Return a table of (workload, column, text): few columns, a line for each workload."""
    kinds = {facts["name"]: facts["kind"] for facts in results["workloads"]}
    columns = list(dict.fromkeys(column for _, column, _ in entries))
    texts = {(workload, column): text for workload, column, text in entries}
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for workload in dict.fromkeys(workload for workload, _, _ in entries):
        name = workload if kinds[workload] == "real" else f"{workload} ({kinds[workload]})"
        row = [texts.get((workload, column), "") for column in columns]
        lines.append(f"| {' | '.join([name, *row])} |")
    return lines


def finding(comparison: Item, *, with_p: bool = False) -> str:
    """Return the interval and the verdict of a comparison, in bold where it is one."""
    label = LABELS[comparison["verdict"]]
    if comparison["low"] is None:
        return label
    strong = f"**{label}**" if comparison["verdict"] in {"better", "worse"} else label
    adjusted = comparison["p_adjusted"]
    p = f"p = {adjusted:.2g}, " if with_p and adjusted is not None else ""
    return f"{_interval(comparison)} {p}{strong}"


def _interval(found: Item) -> str:
    return f"{found['ratio']:.2f} ({found['low']:.2f} to {found['high']:.2f})"


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.3g}", f"{max(values):.3g}"
    return low if low == high else f"{low} to {high}"


def _one_experiment(comparisons: Sequence[Item]) -> Iterator[str]:
    """Say which optimizers did the very same on which workloads: two tests of one finding."""
    same: dict[tuple[str, str], list[str]] = {}
    for index, one in enumerate(comparisons):
        for other in comparisons[:index]:
            same_losses = one["low"] is not None and one["log_ratios"] == other["log_ratios"]
            if one["workload"] == other["workload"] and same_losses:
                pair = other["title"], one["title"]
                same.setdefault(pair, []).append(one["workload"])
    for (first, second), workloads in same.items():
        yield ""
        yield (
            f"{first} and {second} gave the same losses, seed by seed, on {', '.join(workloads)}: "
            "one finding there, although each counts as a test."
        )


def _searched_in_short(results: Item) -> Iterator[str]:
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


def _losing(results: Item) -> Iterator[str]:
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


def _searched(results: Item) -> Iterator[str]:
    if not results["searches"]:
        return
    yield from ["", "## STAM against AdamW tuned over b1 as well", ""]
    yield (
        "AdamW's b1 was chosen among its variants on the tuning seeds, which gave it the trials of "
        "all of them; STAM had its own grid. The last column says what the choice was worth to "
        "AdamW itself: a choice on few tuning seeds can be a bad one, and a win over it then says "
        "little. Exploratory; Holm over this comparison in all real workloads. Test loss relative "
        "to AdamW with b1 chosen:"
    )
    entries: list[tuple[str, str, str]] = []
    for search in results["searches"]:
        workload, chosen = search["workload"], search["chosen"]
        entries.append((workload, "chosen", f"`{chosen}`"))
        ours = [c for c in search["comparisons"] if _is_ours(results, c)]
        entries += [(workload, c["title"], finding(c, with_p=True)) for c in ours]
        (plain,) = (c for c in search["comparisons"] if c["label"] == BASELINE)
        worth = "the chosen one" if chosen == BASELINE else finding(plain)
        entries.append((workload, "AdamW at its own b1 of 0.9", worth))
    yield from ["", *_grid(results, entries)]


def _is_ours(results: Item, comparison: Item) -> bool:
    families = {cell["name"]: cell["family"] for cell in results["cells"]}
    return families[comparison["name"]] == "ours"


def pairs(
    results: Item, framework: str, asked: Mapping[str, Sequence[tuple[str, str]]] = PAIRS
) -> list[dict[str, Any]]:
    """Compare the pairs of a framework on every workload that both have.

    The rules are those of the comparisons with AdamW; each has `"other"`, the second one's title.
    Holm is over the real workloads of each pair, which is one question: over all pairs the seeds
    of the tier could not reach the level.
    """
    cells = {cell["name"]: cell for cell in results["cells"]}
    real = {facts["name"] for facts in results["workloads"] if facts["kind"] == "real"}
    due = results["protocol"]["budget"]["defaults"]
    workloads = list(dict.fromkeys(cell["workload"] for cell in results["cells"]))
    found: list[dict[str, Any]] = []
    for labels in asked[framework]:
        names = [[f"{workload}/{framework}/{label}" for label in labels] for workload in workloads]
        sides = [(cells[one], cells[two]) for one, two in names if {one, two} <= cells.keys()]
        registered = [one["workload"] in real for one, _ in sides]
        compared = compare_pairs(sides, registered, defaults_due=due)
        found += [c | {"other": two["title"]} for c, (_, two) in zip(compared, sides, strict=True)]
    return sorted(found, key=lambda c: workloads.index(c["workload"]))


def _pair_table(results: Item, framework: str) -> Iterator[str]:
    rows = pairs(results, framework)
    if not rows:
        return
    yield from ["", f"## Among each other, {FRAMEWORK_TITLES[framework]}", ""]
    yield (
        "Test loss of the one relative to the other, same seeds. Exploratory; Holm over the real "
        "workloads of each pair, and better has to hold against the other at its default rate, too."
    )
    entries = [
        (row["workload"], f"{row['title']} / {row['other']}", finding(row, with_p=True))
        for row in rows
    ]
    yield from ["", *_grid(results, entries)]


def _worth(results: Item) -> Iterator[str]:
    """Show where a search has misled, AdamW or anybody else."""
    yield from ["", "## What the search was worth", ""]
    yield (
        "Test loss at the learning rate that the search chose relative to the same optimizer at "
        "its default rate, same fresh seeds (95 % interval, no test). Above 1 the default is the "
        "better one, and the search has misled."
    )
    for framework in FRAMEWORKS:
        cells = [c for c in results["cells"] if c["framework"] == framework]
        shown = [c for c in cells if _is_shown(c)]
        if shown:
            yield from ["", f"{FRAMEWORK_TITLES[framework]}:", ""]
            yield from _grid(results, [(c["workload"], c["title"], _gain(c)) for c in shown])
    unsteady = list(_unsteady(results))
    yield ""
    yield (
        "Intervals and p-values take the chosen rates as given. "
        + (
            "With one of the tuning seeds left out, these searches would have chosen another:"
            if unsteady
            else "With any one of the tuning seeds left out, every search chooses the same."
        )
    )
    yield from ["", *unsteady] if unsteady else []


def _unsteady(results: Item) -> Iterator[str]:
    """Name the searches whose choice hangs on one tuning seed."""
    seeds = range(results["protocol"]["budget"]["tuning_seeds"])
    for cell in results["cells"]:
        chosen = cell["tuning"]["selected"]
        if chosen is None or len(seeds) < 2 or not _is_shown(cell):
            continue
        others = {_choice_without(cell, seed) for seed in seeds} - {chosen}
        if others:
            rates = " or ".join(f"{rate:g}" for rate in sorted(others))
            where = f"{cell['workload']} in {FRAMEWORK_TITLES[cell['framework']]}"
            yield f"- {where}: {cell['title']} took {chosen:g}, without one of them {rates}."


def _choice_without(cell: Item, seed: int) -> float:
    """Return the learning rate that the other tuning seeds choose, by the protocol's score."""

    def score(trial: Item) -> float:
        losses = [loss for index, loss in enumerate(trial["val_loss"]) if index != seed]
        return math.inf if None in losses else math.fsum(map(_log, losses))

    return min(cell["tuning"]["trials"], key=score)["learning_rate"]


def _log(loss: float) -> float:
    return math.log(loss) if loss > 0 else -math.inf


def _is_shown(cell: Item) -> bool:
    return cell["family"] == "ours" or cell["label"] == BASELINE


def _gain(cell: Item) -> str:
    if cell["tuning"]["selected"] == cell["defaults"]["learning_rate"]:
        return "the default"
    found = compare_paired(fresh_losses(cell), fresh_losses(cell, "defaults"))
    if found.log_ratio is None or found.low is None or found.high is None:
        return "diverged"
    ends = {"ratio": found.log_ratio, "low": found.low, "high": found.high}
    return _interval({name: math.exp(value) for name, value in ends.items()})


def _figures(results: Item) -> Iterator[str]:
    yield from ["", "## Figures"]
    for group in GROUPS:
        charts = [
            c for f in FRAMEWORKS for c in group.draw(results, f) if c.name.startswith(FIGURES)
        ]
        if charts:
            explain = EXPLAIN.get(group.heading, group.explain)
            yield from ["", f"### {group.heading}", "", explain, ""]
            for chart in charts:
                text = f"{group.heading}, {FRAMEWORK_TITLES[chart.framework]}: {chart.title}"
                yield f"![{text}](figures/{chart.name}.svg)"


def figure_names(results: Item) -> list[str]:
    """Return the files of the page's figures."""
    drawn = (chart for group in GROUPS for f in FRAMEWORKS for chart in group.draw(results, f))
    return [f"{chart.name}.svg" for chart in drawn if chart.name.startswith(FIGURES)]
