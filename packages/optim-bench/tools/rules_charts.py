"""The charts of `evidence/rules.md`, as Vega-Lite specifications."""

from collections.abc import Mapping, Sequence
from typing import Any

from rules_scores import DEVELOPMENT, HELD_OUT, losses, scores, state

WORST = "worst regret (hundredths of log loss)"
# A rule that fails is far off; the colours are for those that do not.
LARGEST = 40.0


def charts(
    results: Mapping[str, Any], large: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Return the specifications by file name."""
    development, held_out = (scores(losses(results, part)) for part in (DEVELOPMENT, HELD_OUT))
    return {
        "regret.svg": _regret(development, DEVELOPMENT),
        "held-out.svg": _regret(held_out, HELD_OUT),
        "state.svg": _state(results, held_out),
        "large.svg": _curves(large),
    }


def _regret(scored: Mapping[str, Any], workloads: Sequence[str]) -> dict[str, Any]:
    order = sorted(scored, key=lambda name: scored[name]["worst"])
    cells = [
        {
            "entry": name,
            "workload": workload,
            "regret": 100 * regret,
            "worst": regret == scored[name]["worst"],
        }
        for name in order
        for workload, regret in scored[name]["regrets"].items()
    ]
    colour = {
        "field": "regret",
        "type": "quantitative",
        "scale": {"range": ["#f7fbff", "#6baed6"], "domain": [0, LARGEST], "clamp": True},
        "title": "regret",
    }
    outlined = {"condition": {"test": "datum.worst", "value": "black"}, "value": None}
    number = {"field": "regret", "type": "quantitative", "format": ".1f"}
    place = {"field": "workload", "type": "nominal", "sort": list(workloads), "title": None}
    return {
        "width": 520,
        "data": {"values": cells},
        "encoding": {
            "y": {"field": "entry", "type": "nominal", "sort": order, "title": None},
            "x": {**place, "axis": {"labelAngle": 0, "orient": "top"}},
        },
        "layer": [
            {"mark": "rect", "encoding": {"color": colour, "stroke": outlined}},
            {"mark": "text", "encoding": {"text": number}},
        ],
    }


def _state(results: Mapping[str, Any], scored: Mapping[str, Any]) -> dict[str, Any]:
    points = [
        {
            "entry": name,
            "state": state(results, name, HELD_OUT),
            **{key: 100 * score[key] for key in ("worst", "low", "high")},
        }
        for name, score in scored.items()
    ]
    y = {
        "field": "worst",
        "type": "quantitative",
        "title": WORST,
        "scale": {"type": "log", "domain": [14, 140]},
        "axis": {"values": [15, 20, 30, 40, 60, 80, 120]},
    }
    x = {
        "field": "state",
        "type": "quantitative",
        "title": "state entries per parameter, the largest of the held-out workloads",
        "scale": {"domain": [0, 2.4]},
    }
    bar = {"y": {**y, "field": "low"}, "y2": {"field": "high"}}
    label = {"type": "text", "align": "left", "dx": 6, "fontSize": 10}
    return {
        "width": 560,
        "height": 420,
        "data": {"values": points},
        "encoding": {"x": x},
        "layer": [
            {"mark": {"type": "rule", "opacity": 0.25}, "encoding": bar},
            {"mark": {"type": "point", "filled": True}, "encoding": {"y": y}},
            {"mark": label, "encoding": {"y": y, "text": {"field": "entry"}}},
        ],
    }


def _curves(large: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    best: dict[str, Mapping[str, Any]] = {}
    for run in large:
        name, loss = run["entry"], run["metrics"]["val_loss"]
        if name not in best or loss < best[name]["metrics"]["val_loss"]:
            best[name] = run
    points = [
        {"entry": f"{name}, rate {run['rate']:g}", "step": step, "loss": loss}
        for name, run in best.items()
        for step, loss in zip(run["curve"]["step"], run["curve"]["val_loss"], strict=True)
        if step
    ]
    return {
        "width": 560,
        "height": 320,
        "data": {"values": points},
        "mark": "line",
        "encoding": {
            "x": {"field": "step", "type": "quantitative"},
            "y": {
                "field": "loss",
                "type": "quantitative",
                "title": "validation loss",
                "scale": {"zero": False},
            },
            "color": {"field": "entry", "type": "nominal", "title": None},
        },
    }
