"""Colours, dashes and marks: one set per optimizer, the same in every chart, light and dark.

Hues after Okabe and Ito, distinguishable with the common colour-vision deficiencies; dashes and
marks repeat the distinction without colour. The baseline is always grey.
"""

from collections.abc import Mapping, Sequence
from typing import Any

FONT = "Inter, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
BASELINE_COLOURS = {"light": "#6b7280", "dark": "#9ca3af"}
COLOURS = {
    "light": ("#0b63a8", "#c2530a", "#0a7d5a", "#a2487f", "#8a6d00", "#3f7fb5", "#7a1f4b"),
    "dark": ("#5aa9e6", "#f08a4b", "#3fc49a", "#dd8fc0", "#d9b83b", "#9cc9ee", "#d4719f"),
}
DASHES = ((1, 0), (6, 2), (2, 2), (8, 2, 2, 2), (4, 4), (1, 3), (10, 3))
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right")
INK = {"light": "#1f2933", "dark": "#e5e7eb"}
FAINT = {"light": "#e3e7ec", "dark": "#2d3540"}
MUTED = {"light": "#5b6673", "dark": "#9aa5b1"}
THEMES = ("light", "dark")


def colour_of(labels: Sequence[str], baseline: str, theme: str) -> dict[str, str]:
    """Return label -> colour; more labels than colours repeat them, told apart by dash and mark."""
    others = [label for label in labels if label != baseline]
    palette = COLOURS[theme]
    colours = {label: palette[i % len(palette)] for i, label in enumerate(others)}
    return {**colours, baseline: BASELINE_COLOURS[theme]}


def marks_of(labels: Sequence[str], baseline: str) -> dict[str, dict[str, Any]]:
    """Return label -> dash and mark."""
    others = [label for label in labels if label != baseline]
    marks: dict[str, dict[str, Any]] = {
        label: {
            # Past the last colour dash and mark move on, so that no pair repeats soon.
            "dash": list(DASHES[(i + i // len(COLOURS["light"])) % len(DASHES)]),
            "shape": SHAPES[(i + i // len(COLOURS["light"])) % len(SHAPES)],
        }
        for i, label in enumerate(others)
    }
    return {**marks, baseline: {"dash": [1, 0], "shape": "circle"}}


def page_themes() -> dict[str, dict[str, Any]]:
    """Return what a page needs to draw a chart of the first theme in each theme.

    Per theme the configuration, and every colour of the first theme with its counterpart. A
    specification is most of a chart, and stands on the page once.
    """
    first, *_ = THEMES
    return {
        theme: {
            "config": config(theme),
            "colours": dict(zip(_colours(first), _colours(theme), strict=True)),
        }
        for theme in THEMES
    }


def _colours(theme: str) -> tuple[str, ...]:
    return (*COLOURS[theme], BASELINE_COLOURS[theme], INK[theme], MUTED[theme])


def config(theme: str) -> Mapping[str, Any]:
    """Return the Vega-Lite configuration of a theme."""
    text = {"labelColor": MUTED[theme], "titleColor": MUTED[theme], "labelFont": FONT}
    return {
        "background": "transparent",
        "font": FONT,
        "view": {"stroke": None},
        "axis": {
            **text,
            "titleFont": FONT,
            "titleFontWeight": "normal",
            "titleFontSize": 12,
            "labelFontSize": 12,
            "gridColor": FAINT[theme],
            "domainColor": FAINT[theme],
            "tickColor": FAINT[theme],
            "titlePadding": 8,
            "labelPadding": 6,
        },
        "header": {**text, "titleFont": FONT, "labelFontSize": 12, "labelFontWeight": 600},
        "legend": {**text, "titleFont": FONT, "labelFontSize": 12, "symbolStrokeWidth": 2},
        "title": {"color": INK[theme], "font": FONT, "fontSize": 14, "anchor": "start"},
    }
