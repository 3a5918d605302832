"""The charts of `evidence/rules.md`, as Vega-Lite specifications."""

from collections.abc import Mapping, Sequence
from typing import Any

from rules_scores import DEVELOPMENT, HELD_OUT, losses, scores, state

WORST = "worst regret (hundredths of log loss)"
# A rule that fails is far off; the colours and the axis are for those that do not.
LARGEST = 40.0


def charts(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the specifications by file name."""
    parts = {"development": DEVELOPMENT, "held out": HELD_OUT}
    scored = {part: scores(losses(results, workloads)) for part, workloads in parts.items()}
    return {
        "regret.svg": _regret(results, scored["development"], DEVELOPMENT),
        "held-out.svg": _regret(results, scored["held out"], HELD_OUT),
        "state.svg": _state(results, scored),
    }


def _regret(
    results: Mapping[str, Any], scored: Mapping[str, Any], workloads: Sequence[str]
) -> dict[str, Any]:
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


def _state(results: Mapping[str, Any], scored: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    points = [
        {
            "entry": name,
            "part": part,
            "state": state(results, name),
            **{key: min(100 * score[key], LARGEST) for key in ("worst", "low", "high")},
        }
        for part, entries in scored.items()
        for name, score in entries.items()
    ]
    y = {"field": "worst", "type": "quantitative"}
    return {
        "width": 360,
        "height": 360,
        "data": {"values": points},
        "facet": {"column": {"field": "part", "type": "nominal", "title": None}},
        "spec": {
            "width": 360,
            "height": 380,
            "encoding": {
                "x": {
                    "field": "state",
                    "type": "quantitative",
                    "title": "state entries per parameter (development, largest)",
                    "scale": {"domain": [0, 2.6]},
                }
            },
            "layer": [
                {
                    "mark": {"type": "rule", "opacity": 0.4},
                    "encoding": {
                        "y": {"field": "low", "type": "quantitative", "title": WORST},
                        "y2": {"field": "high"},
                    },
                },
                {"mark": {"type": "point", "filled": True}, "encoding": {"y": y}},
                {
                    "mark": {"type": "text", "align": "left", "dx": 6, "fontSize": 9},
                    "encoding": {"y": y, "text": {"field": "entry"}},
                },
            ],
        },
    }
