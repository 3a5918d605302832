"""The report of a comparison: the same bytes for the same runs."""

from optim_bench.report._markdown import summary_markdown, update_readme
from optim_bench.report._write import write_report

__all__ = ["summary_markdown", "update_readme", "write_report"]
