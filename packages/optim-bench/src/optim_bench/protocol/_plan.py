"""The plan: what is compared, fixed and written down before the first run."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optim_bench.protocol._cell import Cell
from optim_bench.protocol._check import check_types
from optim_bench.protocol._tiers import ALPHA, LEVEL, MAX_FAMILY, Budget
from optim_bench.records import FRAMEWORKS

PROTOCOL = "v1"
BASELINE = "adamw"


@dataclass(frozen=True)
class Plan:
    """Everything that decides which runs exist and which test counts.

    Args:
        tier: name of the tier, for the report's caution.
        budget: runs per cell.
        cells: one per workload, framework and optimizer; each framework that has a cell on a
            workload has the baseline there, too.
        family: names of the cells whose tests share the corrected level, fixed in advance; every
            other comparison is exploratory.
        titles: `"framework/label"` -> the optimizer's title, for the report.
        families: `"framework/label"` -> `"ours"`, `"baseline"`, `"ablation"` or `"third-party"`.
        workloads: what the workloads declare: kind, metric names, target, data licence.
        added: names of the cells that were entered after the first results. They share the
            corrected level with the family and are exploratory.

    Raises:
        ValueError: the baseline is missing somewhere, a cell appears twice, or a framework's family
            has more than 25 tests.
    """

    tier: str
    budget: Budget
    cells: tuple[Cell, ...]
    family: tuple[str, ...]
    titles: Mapping[str, str]
    families: Mapping[str, str]
    workloads: Mapping[str, Mapping[str, Any]]
    added: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [cell.name for cell in self.cells]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{', '.join(doubled)} given twice")
        for cell in self.cells:
            if baseline_name(cell) not in names:
                raise ValueError(
                    f"{cell.name} has no baseline; {BASELINE} has to run on {cell.workload} in "
                    f"{cell.framework} as well"
                )
        for framework in FRAMEWORKS:
            count = len(family_of(self, framework)) + len(added_of(self, framework))
            if count > MAX_FAMILY:
                raise ValueError(
                    f"{count} tests in {framework}; at most {MAX_FAMILY} share one corrected "
                    "level: choose fewer workloads or optimizers"
                )

    @property
    def baseline(self) -> str:
        """Label of the optimizer that every other one is compared with."""
        return BASELINE

    def to_json(self) -> dict[str, Any]:
        """Return the plan as a plain dictionary that strict JSON can hold."""
        return {
            "protocol": PROTOCOL,
            "tier": self.tier,
            "budget": self.budget.to_json(),
            "baseline": BASELINE,
            "alpha": ALPHA,
            "level": LEVEL,
            "family": list(self.family),
            "titles": dict(self.titles),
            "families": dict(self.families),
            "workloads": {name: dict(facts) for name, facts in self.workloads.items()},
            "cells": [cell.to_json() for cell in self.cells],
            **({"added": list(self.added)} if self.added else {}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Plan":
        """Rebuild a plan from `to_json`'s dictionary.

        Raises:
            ValueError: it was written under another protocol, or a field is missing or wrong.
        """
        if data.get("protocol") != PROTOCOL:
            raise ValueError(f"protocol is {data.get('protocol')!r}; this version reads {PROTOCOL}")
        try:
            check_types(data)
            return cls(
                tier=data["tier"],
                budget=Budget(**data["budget"]),
                cells=tuple(Cell(**cell) for cell in data["cells"]),
                family=tuple(data["family"]),
                titles=data["titles"],
                families=data["families"],
                workloads=data["workloads"],
                added=tuple(data.get("added", ())),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"the plan lacks a field or has a strange one: {error}") from error

    def digest(self) -> str:
        """Return the SHA-256 of the plan's canonical JSON, the registration number of the tests."""
        plan = self.identity()
        text = json.dumps(plan, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode("ascii")).hexdigest()

    def identity(self) -> dict[str, Any]:
        """Return the plan without the places of its tasks, which decide no number."""
        cells = [dataclasses.replace(cell, task=None).to_json() for cell in self.cells]
        return {**self.to_json(), "cells": cells}


def baseline_name(cell: Cell) -> str:
    """Return the name of the cell that this one is compared with."""
    return f"{cell.workload}/{cell.framework}/{BASELINE}"


def family_of(plan: Plan, framework: str) -> list[str]:
    """Return the names of the framework's cells whose tests share one corrected level."""
    return [c.name for c in plan.cells if c.framework == framework and c.name in plan.family]


def added_of(plan: Plan, framework: str) -> list[str]:
    """Return the names of the framework's cells that were entered after the first results."""
    return [c.name for c in plan.cells if c.framework == framework and c.name in plan.added]
