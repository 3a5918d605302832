"""Charts of searching and of reaching: the best of k trials, steps to a target, its profile."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from optim_bench.report.pages._chart import (
    Chart,
    Spec,
    band,
    highest_drawn,
    line,
    loss_axis,
    on_log_axis,
)
from optim_bench.report.pages._markdown import number
from optim_bench.report.pages._select import by_workload, labels_of, of_framework, titles_of


def search(results: Mapping[str, Any], framework: str) -> Iterator[Chart]:
    """Best validation loss that k random learning rates of the search would have found."""
    for workload, cells in by_workload(results["cells"], framework):
        data = [
            {
                "label": cell["label"],
                "optimizer": cell["title"],
                "trials": index + 1,
                "loss": curve["expected"][index],
                "low": curve["low"][index],
                "high": curve["high"][index],
            }
            for cell in cells
            for curve in [cell["tuning"]["best_of"]]
            for index in range(len(curve["expected"]))
        ]
        if not any(row["loss"] for row in data):
            continue
        known = [row for row in data if row["loss"] is not None and row["high"] is not None]
        drawn = [on_log_axis(row) for row in known]
        x: Spec = {"field": "trials", "type": "quantitative", "title": "learning rates tried"}
        x |= {"axis": {"grid": False, "tickMinStep": 1}, "scale": {"zero": False, "padding": 8}}
        y = loss_axis("best validation loss", drawn, highest_drawn(cells))
        tooltip = [
            {"field": "optimizer"},
            {"field": "trials"},
            {"field": "loss", "format": ".4g", "title": "expected best"},
        ]
        yield Chart(
            name=f"search-{framework}-{workload}",
            kind="search",
            framework=framework,
            title=workload,
            data=drawn,
            layers=[
                {
                    "mark": {"type": "area", "opacity": 0.1},
                    "encoding": {"x": x, **band(y), "color": "@color"},
                },
                {
                    "mark": {"type": "line", "strokeWidth": 2, "point": False},
                    "encoding": line(x, y) | {"tooltip": tooltip},
                },
            ],
            labels=labels_of(cells),
            titles=titles_of(cells),
            columns=("optimizer", "learning rates", "expected best", "quartiles"),
            rows=[
                [
                    row["optimizer"],
                    str(row["trials"]),
                    number(row["loss"], ".4g") or "may have diverged",
                    f"{number(row['low'], '.4g')} to {number(row['high'], '.4g') or 'diverged'}",
                ]
                for row in data
            ],
        )


def reach(results: Mapping[str, Any], framework: str) -> Iterator[Chart]:
    """Share of the fresh seeds that have reached the target by a step; misses never do."""
    for workload, cells in by_workload(results["cells"], framework):
        mine = [c for c in cells if c["steps_to_target"] and c["steps_to_target"]["runs"]]
        # A short tier may reach no target at all.
        if not any(c["steps_to_target"]["reached"] for c in mine):
            continue
        data = [
            {"label": cell["label"], "optimizer": cell["title"], "step": step, "share": share}
            for cell in mine
            for step, share in _reached(cell)
        ]
        x: Spec = {"field": "step", "type": "quantitative", "title": "step"}
        x["axis"] = {"grid": False, "tickCount": 5}
        y: Spec = {"field": "share", "type": "quantitative", "scale": {"domain": [0, 1]}}
        y |= {"title": "seeds at the target", "axis": {"format": "%", "tickCount": 5}}
        tooltip = [{"field": "optimizer"}, {"field": "step"}, {"field": "share", "format": ".0%"}]
        target = mine[0]["steps_to_target"]["target"]
        yield Chart(
            name=f"reach-{framework}-{workload}",
            kind="reach",
            framework=framework,
            title=f"{workload}, validation loss {target:g}",
            data=data,
            layers=[
                {
                    "mark": {"type": "line", "strokeWidth": 2, "interpolate": "step-after"},
                    "encoding": line(x, y) | {"tooltip": tooltip},
                }
            ],
            labels=labels_of(mine),
            titles=titles_of(mine),
            columns=("optimizer", "reached", "median step", "median seconds"),
            rows=[_reach_row(cell) for cell in mine],
        )


def _reached(cell: Mapping[str, Any]) -> Iterator[tuple[float, float]]:
    runs = cell["steps_to_target"]["runs"]
    steps = sorted(step for step in runs if step is not None)
    yield 0, 0.0
    for index, step in enumerate(steps):
        yield step, (index + 1) / len(runs)
    # Seeds that missed are censored at the horizon: the curve goes on, flat.
    yield cell["steps"], len(steps) / len(runs)


def _reach_row(cell: Mapping[str, Any]) -> list[str]:
    found, seconds = cell["steps_to_target"], cell["seconds_to_target"]
    miss = f"beyond {cell['steps']}"
    return [
        cell["title"],
        f"{found['reached']} of {len(found['runs'])}",
        miss if found["median"] is None else f"{math.floor(found['median']):d}",
        "" if seconds is None else (number(seconds["median"], ".3g") or "not reached"),
    ]


def profile(results: Mapping[str, Any], framework: str) -> Iterator[Chart]:
    """Dolan-Moré profile of the steps to the target."""
    titles = titles_of(of_framework(results["cells"], framework))
    for found in of_framework(results["profiles"], framework):
        if not any(max(shares) for shares in found["shares"].values()):
            continue
        data = [
            {"label": label, "optimizer": titles[label], "ratio": ratio, "share": share}
            for label, shares in found["shares"].items()
            for ratio, share in zip(found["ratios"], shares, strict=True)
        ]
        x: Spec = {"field": "ratio", "type": "quantitative", "scale": {"zero": False}}
        x["title"] = "steps to the target relative to the fastest optimizer here"
        y: Spec = {"field": "share", "type": "quantitative", "scale": {"domain": [0, 1]}}
        y |= {"title": "share of (workload, seed)", "axis": {"format": "%", "tickCount": 5}}
        yield Chart(
            name=f"profile-{framework}",
            kind="profile",
            framework=framework,
            title=f"Targets on {', '.join(found['workloads'])}",
            data=data,
            layers=[
                {
                    "mark": {"type": "line", "strokeWidth": 2, "interpolate": "step-after"},
                    "encoding": line(x, y)
                    | {"tooltip": [{"field": name} for name in ("optimizer", "ratio", "share")]},
                }
            ],
            labels=list(found["shares"]),
            titles=titles,
            columns=(
                "optimizer",
                *(f"within {ratio:g}x" for ratio in found["ratios"]),
                "area",
                "first against AdamW alone",
            ),
            rows=[
                [
                    titles[label],
                    *(f"{100 * share:.0f} %" for share in shares),
                    f"{found['areas'][label]:.3f}",
                    _first(found, label),
                ]
                for label, shares in found["shares"].items()
            ],
        )


def _first(found: Mapping[str, Any], label: str) -> str:
    """Return how often it is at least as fast as the baseline, and the baseline as it."""
    pair = found["pairwise"].get(label)
    if pair is None:
        return ""
    (other,) = [name for name in pair if name != label]
    return f"{100 * pair[label][0]:.0f} % against {100 * pair[other][0]:.0f} %"
