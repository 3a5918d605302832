"""Write every file of a report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optim_bench.errors import BenchError
from optim_bench.report._figures import figures
from optim_bench.report._html import report_html
from optim_bench.report._markdown import summary_markdown
from optim_bench.store import write_bytes, write_json

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
