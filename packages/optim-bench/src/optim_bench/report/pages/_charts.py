"""The charts as Vega-Lite specifications, each with its table.

A chart is drawn for one framework, and where its scales differ for one workload. Colour, dash and
mark come from the theme; `focus` is a parameter of each specification that dims every optimizer but
one, set by the page's legend.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from optim_bench.report.pages._chart import (
    Chart,
    Spec,
    band,
    drawn_interval,
    highest_drawn,
    line,
    log_ticks,
    loss_axis,
    on_log_axis,
    points,
    ratio_domain,
)
from optim_bench.report.pages._markdown import number
from optim_bench.report.pages._select import by_workload, labels_of, of_framework, titles_of
from optim_bench.results.verdicts import (
    LABELS,
    chosen_text,
    has_interval,
    interval_text,
    ratio_text,
    verdict_interval,
)

ROW_HEIGHT = 34

Cell = Mapping[str, Any]


def forest(results: Mapping[str, Any], framework: str) -> Iterator[Chart]:
    """Ratios to the baseline with their intervals."""
    shown = [c for c in of_framework(results["comparisons"], framework) if has_interval(c)]
    if not shown:
        return
    # What lies beyond the axis, and an end without a bound, is drawn to its end.
    data = [
        {
            "label": c["label"],
            "row": f"{c['workload']}   {c['title']}",
            **drawn_interval(c),
            "plain": interval_text(c),
            "verdict": LABELS[c["verdict"]],
        }
        for c in shown
    ]
    y: Spec = {"field": "row", "type": "nominal", "sort": None, "title": None}
    y["axis"] = {"labelLimit": 420, "grid": False, "domain": False, "ticks": False}
    domain = ratio_domain(data)
    scale = {"type": "log", "nice": False, "padding": 12, "domain": domain, "clamp": True}
    x_title = "test loss relative to tuned AdamW (log scale); left of 1 is better"
    x: Spec = {"type": "quantitative", "scale": scale, "title": x_title}
    x["axis"] = {"format": ".3~g", "values": log_ticks(*domain)}
    tooltip = [
        {"field": "row", "title": "comparison"},
        {"field": "ratio", "format": ".3f"},
        {"field": "low", "format": ".3f", "title": "after Holm from"},
        {"field": "high", "format": ".3f", "title": "to"},
        {"field": "plain", "title": "95 % before Holm"},
        {"field": "verdict"},
    ]
    layers: list[Spec] = [
        {
            "data": {"values": [{"one": 1}]},
            "mark": {"type": "rule", "color": "@muted", "strokeDash": [3, 3]},
            "encoding": {"x": {"field": "one", "type": "quantitative", "scale": scale}},
        },
        {
            "mark": {"type": "rule", "strokeWidth": 2.5, "strokeCap": "round"},
            "encoding": {
                "y": y,
                "x": {"field": "low", **x},
                "x2": {"field": "high"},
                "color": "@color",
                "opacity": "@opacity",
                "tooltip": tooltip,
            },
        },
        {
            "mark": {"type": "point", "size": 110, "filled": True, "opacity": 1},
            "encoding": {
                "y": y,
                "x": {"field": "ratio", **x},
                "color": "@color",
                "shape": "@shape",
                "opacity": "@opacity",
                "tooltip": tooltip,
            },
        },
    ]
    rows = [
        [
            c["workload"],
            c["title"],
            ratio_text(c["ratio"]),
            verdict_interval(c),
            interval_text(c),
            number(c["p_value"], ".3g"),
            number(c["p_adjusted"], ".3g"),
            str(c["pairs"]),
            LABELS[c["verdict"]],
        ]
        for c in shown
    ]
    yield Chart(
        name=f"forest-{framework}",
        kind="forest",
        framework=framework,
        title="Test loss relative to equally tuned AdamW",
        data=data,
        layers=layers,
        labels=labels_of(shown),
        titles=titles_of(shown),
        columns=(
            "workload",
            "optimizer",
            "ratio",
            "interval (Holm)",
            "95 % interval",
            "p",
            "p (Holm)",
            "n",
            "verdict",
        ),
        rows=rows,
        height=ROW_HEIGHT * len(data),
    )


def sensitivity(results: Mapping[str, Any], framework: str) -> Iterator[Chart]:
    """Validation loss over the learning rates of the search."""
    for workload, cells in by_workload(results["cells"], framework):
        data: list[dict[str, Any]] = []
        rows: list[list[str]] = []
        for cell in cells:
            for trial in cell["tuning"]["trials"]:
                losses = [loss for loss in trial["val_loss"] if loss is not None]
                whole = bool(losses) and len(losses) == len(trial["val_loss"])
                selected = trial["learning_rate"] == cell["tuning"]["selected"] and trial.get(
                    "values"
                ) == cell["tuning"].get("values")
                row = {"label": cell["label"], "optimizer": cell["title"]}
                row |= {"rate": trial["learning_rate"], "selected": selected, "trained": whole}
                if whole:
                    middle = _geometric_mean(losses)
                    row |= {"loss": middle, "low": min(losses), "high": max(losses)}
                data.append(on_log_axis(row))
                rows.append(
                    [
                        cell["title"],
                        chosen_text({**trial, "selected": trial["learning_rate"]}),
                        f"{row['loss']:.4g}" if whole else "diverged or failed",
                        f"{row['low']:.4g} to {row['high']:.4g}" if whole else "",
                        "selected" if selected else "stopped" if "stopped" in trial else "",
                    ]
                )
        if not any(row["trained"] for row in data):
            continue
        x: Spec = {"field": "rate", "type": "quantitative", "title": "learning rate"}
        x |= {"scale": {"type": "log", "nice": False, "padding": 10}}
        rates = sorted({row["rate"] for row in data})
        # The grid is half-decades, so every other rate is a round number.
        values = [rate for rate in rates if f"{rate:e}".startswith("1.0")]
        x |= {"axis": {"format": "~e", "grid": False, "values": values or rates}}
        y = loss_axis("validation loss", data, highest_drawn(cells))
        tooltip = [
            {"field": "optimizer"},
            {"field": "rate", "format": ".3~g", "title": "learning rate"},
            {"field": "loss", "format": ".4g"},
        ]
        trained = [{"filter": "datum.trained"}]
        # Points that differ in more than the rate lie on no line.
        lined = not any("values" in t for cell in cells for t in cell["tuning"]["trials"])
        marks: list[Spec] = [
            {
                "transform": trained,
                "mark": {"type": "area", "opacity": 0.14},
                "encoding": {"x": x, **band(y), "color": "@color"},
            },
            {
                "transform": trained,
                "mark": {"type": "line", "strokeWidth": 2},
                "encoding": line(x, y) | {"tooltip": tooltip},
            },
        ]
        dots: Spec = {
            "transform": trained,
            "mark": {"type": "point", "size": 30, "opacity": 0.6},
            "encoding": points(x, y) | {"tooltip": tooltip},
        }
        cross: Spec = {
            "transform": [{"filter": "!datum.trained"}],
            "mark": {"type": "text", "text": "×", "fontSize": 16, "baseline": "top"},
            "encoding": {"x": x, "y": {"value": 0}, "color": "@color", "opacity": "@opacity"},
        }
        # An empty layer would have an infinite extent, of which Vega warns.
        crosses = [] if all(row["trained"] for row in data) else [cross]
        yield Chart(
            name=f"sensitivity-{framework}-{workload}",
            kind="sensitivity",
            framework=framework,
            title=workload,
            data=data,
            layers=[
                *crosses,
                *(marks if lined else [dots]),
                {
                    "transform": [*trained, {"filter": "datum.selected"}],
                    "mark": {"type": "point", "size": 90, "filled": True, "opacity": 1},
                    "encoding": points(x, y) | {"tooltip": tooltip},
                },
            ],
            labels=labels_of(cells),
            titles=titles_of(cells),
            columns=("optimizer", "learning rate", "mean validation loss", "range", ""),
            rows=rows,
        )


def curves(results: Mapping[str, Any], framework: str) -> Iterator[Chart]:
    """Validation loss during training, over the fresh seeds."""
    for workload, cells in by_workload(results["cells"], framework):
        data = [
            {
                "label": cell["label"],
                "optimizer": cell["title"],
                "step": step,
                **{name: curve[name][index] for name in ("median", "low", "high")},
            }
            for cell in cells
            for curve in [cell["curve"]]
            for index, step in enumerate(curve["step"])
        ]
        if not data:
            continue
        x: Spec = {"field": "step", "type": "quantitative", "title": "step"}
        x["axis"] = {"grid": False, "tickCount": 5}
        drawn = [on_log_axis(row) for row in data]
        y = loss_axis("validation loss", drawn, highest_drawn(cells))
        tooltip = [
            {"field": "optimizer"},
            {"field": "step"},
            {"field": "median", "format": ".4g"},
            {"field": "low", "format": ".4g", "title": "lower quartile"},
            {"field": "high", "format": ".4g", "title": "upper quartile"},
        ]
        yield Chart(
            name=f"curves-{framework}-{workload}",
            kind="curves",
            framework=framework,
            title=workload,
            data=drawn,
            layers=[
                {
                    "mark": {"type": "area", "opacity": 0.14},
                    "encoding": {"x": x, **band(y), "color": "@color"},
                },
                {
                    "mark": {"type": "line", "strokeWidth": 2},
                    "encoding": line(x, {**y, "field": "median"}) | {"tooltip": tooltip},
                },
            ],
            labels=labels_of(cells),
            titles=titles_of(cells),
            columns=("optimizer", "step", "median", "lower quartile", "upper quartile"),
            rows=[
                [row["optimizer"], f"{row['step']:g}"]
                + [number(row[name], ".4g") for name in ("median", "low", "high")]
                for row in data
            ],
        )


def _geometric_mean(values: Sequence[float]) -> float:
    product = 1.0
    for value in values:
        product *= value ** (1 / len(values))
    return product
