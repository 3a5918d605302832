"""Figures for papers and pages: SVG of every chart, PNG of the forest plots."""

from collections.abc import Iterator, Mapping
from typing import Any

import vl_convert

from optim_bench.report._chart import VEGA_LITE
from optim_bench.report._groups import all_charts
from optim_bench.results import FRAMEWORK_TITLES

WIDE, NARROW = 620, 420
WHITE = "#ffffff"


def figures(
    results: Mapping[str, Any], names: str | tuple[str, ...] = ""
) -> Iterator[tuple[str, bytes]]:
    """Give (file name, content) of every figure, on white, with legend and title.

    Args:
        results: from `build_results`.
        names: what the name of a chart begins with, if not all are wanted.
    """
    baseline = results["protocol"]["baseline"]
    for framework, title in FRAMEWORK_TITLES.items():
        for chart in all_charts(results, framework):
            if not chart.name.startswith(names):
                continue
            width = WIDE if chart.kind in {"forest", "profile"} else NARROW
            spec = chart.spec("light", baseline, legend=True, width=width)
            spec["background"] = WHITE
            spec["padding"] = 16
            spec["title"] = f"{chart.title} ({title})"
            svg = vl_convert.vegalite_to_svg(spec, vl_version=VEGA_LITE)
            yield f"{chart.name}.svg", svg.encode()
            if chart.kind == "forest":
                yield f"{chart.name}.png", vl_convert.svg_to_png(svg, scale=2)
