"""The report of a comparison: the same bytes for the same runs."""

from optim_bench.report.pages._html import report_html
from optim_bench.report.pages._markdown import summary_markdown, tables_markdown, update_readme
from optim_bench.report.pages._markers import replace_section, section_of
from optim_bench.report.pages._write import PAGE, write_report

__all__ = [
    "PAGE",
    "replace_section",
    "report_html",
    "section_of",
    "summary_markdown",
    "tables_markdown",
    "update_readme",
    "write_report",
]
