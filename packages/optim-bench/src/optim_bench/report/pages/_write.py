"""Write every file of a report: page, summary, SVG of every chart, PNG of the forest plots."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import vl_convert

from optim_bench.errors import BenchError
from optim_bench.report.pages._chart import VEGA_LITE
from optim_bench.report.pages._groups import all_charts
from optim_bench.report.pages._html import report_html
from optim_bench.report.pages._markdown import summary_markdown
from optim_bench.results.store import write_bytes, write_json
from optim_bench.results.verdicts import FRAMEWORK_TITLES

PAGE = "report.html"


def write_report(root: Path, results: Mapping[str, Any]) -> Path:
    """Write results.json, report.html, summary.md and figures/, and return the page's path.

    Args:
        root: folder of the comparison.
        results: from `build_results`.

    Raises:
        BenchError: the folder cannot be written.
    """
    folder = root / "figures"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise BenchError(f"cannot write to {root} ({error.strerror}); make it writable") from error
    write_json(root / "results.json", results)
    write_bytes(root / "summary.md", summary_markdown(results).encode())
    files = dict(figures(results))
    for name, content in files.items():
        write_bytes(folder / name, content)
    for old in folder.iterdir():
        # Figures of an earlier plan would pass for this one's.
        if old.suffix in {".svg", ".png"} and old.name not in files:
            old.unlink()
    page = root / PAGE
    write_bytes(page, report_html(results).encode())
    return page


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
