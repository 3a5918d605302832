"""Write every file of a report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optim_bench.report._markdown import summary_markdown
from optim_bench.store import write_bytes, write_json


def write_report(root: Path, results: Mapping[str, Any]) -> Path:
    """Write results.json and summary.md into a folder, and return the path of the report.

    Args:
        root: folder of the comparison.
        results: from `build_results`.
    """
    write_json(root / "results.json", results)
    write_bytes(root / "summary.md", summary_markdown(results).encode())
    return root / "summary.md"
