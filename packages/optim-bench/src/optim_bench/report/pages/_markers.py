"""Sections of a Markdown file that a command writes, between two comments that name them."""

from pathlib import Path

from optim_bench.errors import BenchError
from optim_bench.results.store import write_bytes


def markers(name: str = "") -> tuple[str, str]:
    """Return the lines around a section.

    Example:
        >>> markers("step-speed")[0], markers()[1]
        ('<!-- optim-bench step-speed: begin -->', '<!-- optim-bench: end -->')
    """
    label = f"optim-bench {name}".strip()
    return f"<!-- {label}: begin -->", f"<!-- {label}: end -->"


def section_of(text: str, name: str = "") -> str | None:
    """Return what stands between the markers, or None where they are not there in order."""
    begin, end = markers(name)
    _, found, rest = text.partition(f"{begin}\n")
    section, closed, _ = rest.partition(end)
    return section if found and closed else None


def replace_section(path: Path, section: str, name: str = "") -> None:
    """Put a section between the markers of a Markdown file.

    Raises:
        BenchError: the file cannot be read, or does not hold each marker once and in order.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise BenchError(f"cannot read {path} ({error.strerror}); name an existing file") from error
    begin, end = markers(name)
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise BenchError(f"{path} needs the lines {begin} and {end}, in this order")
    write_bytes(path, f"{before}{begin}\n{section}{end}{after}".encode())
