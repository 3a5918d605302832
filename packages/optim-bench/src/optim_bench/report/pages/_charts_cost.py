"""Charts of what an optimizer costs: memory and step time against what it brings."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from optim_bench.report.pages._chart import (
    Chart,
    Spec,
    drawn_interval,
    log_ticks,
    points,
    ratio_domain,
)
from optim_bench.report.pages._markdown import state_ratio
from optim_bench.report.pages._select import by_workload, labels_of, titles_of
from optim_bench.results.verdicts import has_interval, ratio_text, verdict_interval


def pareto(results: Mapping[str, Any], framework: str) -> Iterator[Chart]:
    """Loss against memory."""
    for workload, cells in by_workload(results["cells"], framework):
        data: list[dict[str, Any]] = []
        for row, cell in _rows(results, cells):
            state = state_ratio(cell)
            if state is not None:
                data.append({**row, "cost": state, "bytes": cell["state_bytes"]})
        if not data:
            continue
        _mark_front(data)
        _place(data)
        x_title = "bytes of optimizer state per byte of parameters"
        x: Spec = {"field": "cost", "type": "quantitative", "title": x_title}
        x |= {"scale": _from_zero(data), "axis": {"tickCount": 6}}
        yield Chart(
            name=f"pareto-{framework}-{workload}",
            kind="pareto",
            framework=framework,
            title=workload,
            data=data,
            layers=_layers(
                data,
                x,
                [
                    {"field": "bytes", "format": ",", "title": "bytes of state"},
                    {"field": "cost", "format": ".3f", "title": "per byte of parameters"},
                ],
            ),
            labels=labels_of(cells),
            titles=titles_of(cells),
            columns=("optimizer", "bytes of state", "per byte of parameters", *_COLUMNS),
            rows=[
                [row["optimizer"], f"{row['bytes']:,}", f"{row['cost']:.3f}", *_texts(row)]
                for row in data
            ],
        )


def pareto_time(results: Mapping[str, Any], framework: str) -> Iterator[Chart]:
    """Loss against step time, where a timing pass measured it."""
    bands = {(t["workload"], t["framework"]): t["band"] for t in results["times"]}
    for workload, cells in by_workload(results["cells"], framework):
        data = [
            {
                **row,
                "cost": cell["step_time"]["ratio"],
                "cost_low": cell["step_time"]["ratio_low"],
                "cost_high": cell["step_time"]["ratio_high"],
                "milliseconds": 1e3 * cell["step_time"]["median"],
            }
            for row, cell in _rows(results, cells)
            if cell["step_time"] is not None
        ]
        if not data:
            continue
        _mark_front(data)
        _place(data)
        low, high = bands[workload, framework]
        x: Spec = {"field": "cost", "type": "quantitative", "scale": _from_zero(data, high)}
        x |= {"title": "time of a training step relative to AdamW", "axis": {"tickCount": 6}}
        band: Spec = {
            "data": {"values": [{"from": low, "to": high}]},
            "mark": {"type": "rect", "color": "@muted", "opacity": 0.16},
            "encoding": {"x": {**x, "field": "from"}, "x2": {"field": "to"}},
        }
        tooltip = [
            {"field": "milliseconds", "format": ".3f", "title": "ms per step"},
            {"field": "cost", "format": ".2f", "title": "relative to AdamW"},
        ]
        yield Chart(
            name=f"pareto-time-{framework}-{workload}",
            kind="pareto-time",
            framework=framework,
            title=f"{workload}, A/A band {low:.2f} to {high:.2f}",
            data=data,
            layers=[band, *_layers(data, x, tooltip)],
            labels=labels_of(cells),
            titles=titles_of(cells),
            columns=("optimizer", "ms per step", "relative to AdamW", "5 to 95 %", *_COLUMNS),
            rows=[
                [
                    row["optimizer"],
                    f"{row['milliseconds']:.3f}",
                    f"{row['cost']:.2f}",
                    f"{row['cost_low']:.2f} to {row['cost_high']:.2f}",
                    *_texts(row),
                ]
                for row in data
            ],
        )


def _from_zero(data: Sequence[Mapping[str, Any]], *more: float) -> Spec:
    """Return a scale of costs, of which none is negative, with room for the last mark."""
    largest = max([*(row["cost"] for row in data), *more])
    return {"domain": [0, 1.15 * largest or 1], "nice": False}


_COLUMNS = ("ratio of losses", "interval (Holm)", "undominated")


def _rows(
    results: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[dict[str, Any], Mapping[str, Any]]]:
    comparisons = {c["name"]: c for c in results["comparisons"]}
    for cell in cells:
        found = comparisons.get(cell["name"])
        ratio = 1.0 if found is None else found["ratio"]
        if ratio is not None:
            row = {"label": cell["label"], "optimizer": cell["title"], "ratio": ratio}
            interval = found is not None and has_interval(found)
            drawn = drawn_interval(found) if found and interval else {}
            row |= {name: drawn.get(name) if found else 1.0 for name in ("low", "high")}
            row["interval"] = verdict_interval(found) if found and interval else ""
            yield row, cell


def _mark_front(data: Sequence[dict[str, Any]]) -> None:
    """Say of each point whether no other is at most as costly and at most as lossy."""
    for row in data:
        mine = (row["cost"], row["ratio"])
        row["front"] = not any(
            other["cost"] <= mine[0]
            and other["ratio"] <= mine[1]
            and (other["cost"], other["ratio"]) != mine
            for other in data
        )


# Optimizers of one cost stand side by side, so many pixels apart.
_STEP = 9


def _place(data: Sequence[dict[str, Any]]) -> None:
    """Give points of the same cost a shift in pixels; the axis stays what it says."""
    largest = max(row["cost"] for row in data)
    columns: dict[int, list[dict[str, Any]]] = {}
    for row in data:
        columns.setdefault(round(row["cost"] / (largest or 1) * 100), []).append(row)
    for rows in columns.values():
        for index, row in enumerate(rows):
            row["shift"] = _STEP * index - _STEP * (len(rows) - 1) // 2


def _texts(row: Mapping[str, Any]) -> list[str]:
    return [ratio_text(row["ratio"]), row["interval"], "yes" if row["front"] else ""]


def _layers(
    data: Sequence[Mapping[str, Any]], x: Spec, tooltip: Sequence[Mapping[str, str]]
) -> list[Spec]:
    domain = ratio_domain(data)
    scale = {"type": "log", "nice": False, "padding": 14, "domain": domain, "clamp": True}
    y: Spec = {"field": "ratio", "type": "quantitative", "scale": scale}
    y |= {"title": "test loss relative to tuned AdamW"}
    y |= {"axis": {"format": ".3~g", "values": log_ticks(*domain)}}
    front: Spec = {
        "transform": [{"filter": "datum.front"}],
        "mark": {"type": "line", "interpolate": "step-after", "color": "@muted"},
        "encoding": {"x": x, "y": y, "order": {"field": "cost", "type": "quantitative"}},
    }
    front["mark"] |= {"strokeDash": [3, 3], "strokeWidth": 1.5}
    tooltips = [
        {"field": "optimizer"},
        *tooltip,
        {"field": "ratio", "format": ".3f", "title": "ratio of losses"},
    ]
    # Shared channels stand once: with a layer per shift they are most of a page otherwise.
    shared = points(x, y)
    del shared["y"]
    shifts = sorted({row["shift"] for row in data})
    intervals: Spec = {
        "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}}
        | {name: shared[name] for name in ("color", "opacity")},
        "layer": [_shifted({"type": "rule", "strokeWidth": 2}, shift) for shift in shifts],
    }
    mark = {"type": "point", "size": 110, "filled": True, "opacity": 1}
    middles: Spec = {
        "encoding": {**shared, "y": y, "tooltip": tooltips},
        "layer": [_shifted(mark, shift) for shift in shifts],
    }
    return [front, intervals, middles]


def _shifted(mark: Spec, shift: int) -> Spec:
    return {
        "transform": [{"filter": f"datum.shift == {shift}"}],
        "mark": {**mark, "xOffset": shift},
    }
