"""What every chart has in common: its table, its theme, its legend and its scales."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optim_bench.report.pages._theme import INK, MUTED, colour_of, config, marks_of
from optim_bench.results.verdicts import shown_interval

VEGA_LITE = "6.4"
_SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
_DIM = 0.12
_LEGEND_COLUMNS = 2

Spec = dict[str, Any]


@dataclass(frozen=True)
class Chart:
    """A chart without its theme.

    Args:
        name: unique in a report, usable as a file name.
        kind: name of the section it belongs to.
        framework: the framework it is about.
        title: what it shows, in words.
        data: rows of the chart's data.
        layers: Vega-Lite layers, in which `"@optimizer"` stands for the colour scale.
        labels: optimizers in the chart, in the order of the legend.
        titles: label -> title.
        columns: headings of the table.
        rows: the table, as text.
        height: of the plot, in pixels.
        extra: further top-level properties.
    """

    name: str
    kind: str
    framework: str
    title: str
    data: Sequence[Mapping[str, Any]]
    layers: Sequence[Spec]
    labels: Sequence[str]
    titles: Mapping[str, str]
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    height: int = 260
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def spec(self, theme: str, baseline: str, *, legend: bool, width: int | str) -> Spec:
        """Return the Vega-Lite specification.

        Args:
            theme: `"light"` or `"dark"`.
            baseline: label of the baseline.
            legend: whether the chart carries its own legend (figures) or the page does.
            width: in pixels, or `"container"`.
        """
        colours = colour_of(self.labels, baseline, theme)
        marks = marks_of(self.labels, baseline)
        shown: Spec | None = None
        if legend:
            names = {label: self.titles[label] for label in self.labels}
            shown = {"title": None, "orient": "bottom", "labelExpr": _names(names)}
            # In one row it would be wider than the plot, and its longest names cut off.
            shown |= {"columns": _LEGEND_COLUMNS, "labelLimit": 0}
        scales: dict[str, Spec] = {
            "color": {"scale": _scale(self.labels, [colours[x] for x in self.labels])},
            "shape": {"scale": _scale(self.labels, [marks[x]["shape"] for x in self.labels])},
            "strokeDash": {"scale": _scale(self.labels, [marks[x]["dash"] for x in self.labels])},
        }
        replacements: dict[str, Any] = {
            f"@{channel}": {"field": "label", "type": "nominal", "legend": shown, **scale}
            for channel, scale in scales.items()
        }
        replacements |= {"@ink": INK[theme], "@muted": MUTED[theme]}
        replacements["@opacity"] = {
            "condition": {"test": "focus == '' || datum.label == focus", "value": 1},
            "value": _DIM,
        }
        layers = [_replace(layer, replacements) for layer in self.layers]
        return {
            "$schema": _SCHEMA,
            "config": config(theme),
            "params": [{"name": "focus", "value": ""}],
            "data": {"values": [_short(row) for row in self.data]},
            "width": width,
            "height": self.height,
            "layer": layers,
            **self.extra,
        }


def ratio_domain(data: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return a range that holds every interval and 1, at most a factor of 10 each way."""
    ends = [value for row in data for value in (row["low"], row["high"], row["ratio"]) if value]
    return [max(0.1, min([*ends, 0.95])), min(10.0, max([*ends, 1.05]))]


# Where an interval without a bound ends on a chart: far beyond the axis.
NO_BOUND = {"low": 1e-6, "high": 1e6}


def drawn_interval(comparison: Mapping[str, Any]) -> dict[str, float]:
    """Return a comparison's ratio, low and high as a chart draws them."""
    shown = shown_interval(comparison)
    ends = {n: end if shown[n] is None else shown[n] for n, end in NO_BOUND.items()}
    return {"ratio": comparison["ratio"], **ends}


def on_log_axis(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row without its losses of exactly 0, which have no place on a log scale."""
    return {name: None if name in _LOSSES and value == 0 else value for name, value in row.items()}


_LOSSES = frozenset({"loss", "median", "low", "high"})


def highest_drawn(cells: Sequence[Mapping[str, Any]]) -> float:
    """Return 1,000 times the highest median of the calmest learning curve: the end of a loss axis.

    A rate that explodes and stays finite would otherwise press all others onto one line.
    """
    medians = ([v for v in cell["curve"]["median"] if v] for cell in cells)
    return 1000 * min((max(found) for found in medians if found), default=math.inf)


def loss_axis(title: str, data: Sequence[Mapping[str, Any]], top: float) -> Spec:
    """Return the log scale of a loss, with its ticks; what lies beyond `top` is drawn at it."""
    found = [v for row in data for name in ("low", "high") if (v := row.get(name))]
    scale: Spec = {"type": "log", "nice": False, "padding": 8}
    low, high = min(found, default=1.0), max(found, default=1.0)
    if low < top < high:
        high = top
        scale |= {"domain": [low, high], "clamp": True}
    return {
        "field": "loss",
        "type": "quantitative",
        "title": f"{title} (log scale)",
        "scale": scale,
        "axis": {"format": ".3~g", "values": log_ticks(low, high) if found else []},
    }


def log_ticks(low: float, high: float) -> list[float]:
    """Return four or more round numbers in a range, evenly enough spaced on a log scale.

    Example:
        >>> log_ticks(0.86, 1.07), log_ticks(0.02, 3.0)
        ([0.9, 0.95, 1.0, 1.05], [0.03, 0.1, 0.3, 1.0, 3.0])
    """
    ticks: list[float] = []
    for series in _tick_series(low, high):
        ticks = [tick for tick in series if low <= tick <= high]
        if len(ticks) >= _FEWEST_TICKS:
            break
    return ticks[:: math.ceil(len(ticks) / _MOST_TICKS) or 1]


def _tick_series(low: float, high: float) -> Iterator[list[float]]:
    """Give lists of round numbers, from the widest apart on; each is made when it is needed."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for found in _MANTISSAS:
        yield [float(f"{m}e{d}") for d in decades for m in found]
    # Within less than a decade nothing on a log scale is round: even steps read better.
    for d in (*reversed(decades), decades[0] - 1):
        for m in (5, 2, 1):
            yield _multiples(float(f"{m}e{d}"), high)


_FEWEST_TICKS = 4
_MOST_TICKS = 20
_MANTISSAS = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7))


def _multiples(step: float, high: float) -> list[float]:
    # Below the range of a float there are no steps.
    count = math.floor(high / step) if 0 < step < math.inf else 0
    return [float(f"{i * step:.6g}") for i in range(1, count + 1)]


def band(y: Spec) -> Spec:
    """Return the channels of a band between `low` and `high`."""
    return {"y": {**y, "field": "low"}, "y2": {"field": "high"}, "fillOpacity": "@opacity"}


def line(x: Spec, y: Spec) -> Spec:
    """Return the channels of one line per optimizer."""
    channels = {"color": "@color", "strokeDash": "@strokeDash", "opacity": "@opacity"}
    return {"x": x, "y": y, **channels}


def points(x: Spec, y: Spec) -> Spec:
    """Return the channels of one mark per optimizer."""
    return {"x": x, "y": y, "color": "@color", "shape": "@shape", "opacity": "@opacity"}


def _short(row: Mapping[str, Any]) -> dict[str, Any]:
    """Keep the digits that a chart can show; the page embeds the whole numbers elsewhere."""
    return {
        name: float(f"{value:.5g}") if isinstance(value, float) else value
        for name, value in row.items()
    }


def _scale(domain: Sequence[str], values: Sequence[Any]) -> Spec:
    return {"domain": list(domain), "range": list(values)}


def _names(titles: Mapping[str, str]) -> str:
    """Return the Vega expression that turns a label into its title."""
    pairs = ", ".join(f"{label!r}: {title!r}" for label, title in titles.items())
    return f"({{{pairs}}})[datum.label]"


def _replace(value: Any, replacements: Mapping[str, Any]) -> Any:
    if isinstance(value, str):
        return replacements.get(value, value)
    if isinstance(value, dict):
        return {name: _replace(item, replacements) for name, item in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, list):
        return [_replace(item, replacements) for item in value]  # pyright: ignore[reportUnknownVariableType]
    return value
