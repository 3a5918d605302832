"""Reading golden files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from optim_conformance.adapter import Array, Tree


@dataclass(frozen=True)
class Golden:
    """One recorded trajectory."""

    name: str
    hparams: Mapping[str, Any]
    requires: frozenset[str]
    start: Mapping[str, Any]
    recorded: list[dict[str, Any]]

    def params(self, dtype: str) -> dict[str, Array]:
        """Return the initial parameters."""
        return _tree(self.start, dtype)

    def steps(self) -> Iterator[tuple[Tree, Tree, Tree]]:
        """Yield gradients, then parameters and state after the step."""
        for row in self.recorded:
            yield _tree(row["grads"]), _tree(row["params"]), _tree(row["state"])


def path_of(opt: str) -> Path:
    """Return the golden file of an optimizer."""
    return Path(__file__).parent / f"{opt}.json"


def load(opt: str) -> list[dict[str, Any]]:
    """Return the content of an optimizer's golden file."""
    return json.loads(path_of(opt).read_text(encoding="utf-8"))


def golden_cases(opt: str) -> list[Golden]:
    """Return the recorded trajectories of an optimizer."""
    return [
        Golden(c["name"], c["hparams"], frozenset(c["requires"]), c["start"], c["steps"])
        for c in load(opt)
    ]


def _tree(recorded: Mapping[str, Any], dtype: str = "float64") -> dict[str, Array]:
    return {k: np.asarray(v, dtype) for k, v in recorded.items()}
