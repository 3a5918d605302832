"""Which items of the results a chart is about."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Cell = Mapping[str, Any]


def of_framework(items: Sequence[Cell], framework: str) -> list[Cell]:
    """Return the items of a framework."""
    return [item for item in items if item["framework"] == framework]


def by_workload(cells: Sequence[Cell], framework: str) -> Iterator[tuple[str, list[Cell]]]:
    """Give each workload of a framework with its cells."""
    mine = of_framework(cells, framework)
    for workload in dict.fromkeys(cell["workload"] for cell in mine):
        yield workload, [cell for cell in mine if cell["workload"] == workload]


def labels_of(items: Sequence[Cell]) -> list[str]:
    """Return each label once, in order."""
    return list(dict.fromkeys(item["label"] for item in items))


def titles_of(items: Sequence[Cell]) -> dict[str, str]:
    """Return label -> title."""
    return {item["label"]: item["title"] for item in items}
