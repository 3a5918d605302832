"""Writing golden files from the oracle."""

from __future__ import annotations

from typing import Any

import numpy as np

from optim_conformance.adapter import Tree
from optim_conformance.oracle import Oracle
from optim_conformance.rules import RULES


def record(opt: str) -> list[dict[str, Any]]:
    """Return the content of an optimizer's golden file, computed now.

    Inputs are multiples of 1/64, exact in every float type, so that only the arithmetic differs
    between implementations.
    """
    rows: list[dict[str, Any]] = []
    for number, case in enumerate(RULES[opt].golden):
        rng = np.random.default_rng([20, number])
        shapes = {"x": (2, 2), "y": (3,)}
        start = {k: rng.integers(-64, 65, s) / 64 for k, s in shapes.items()}
        hparams = {**RULES[opt].for_leaves(shapes), **case.hparams}
        oracle = Oracle(opt, hparams, start)
        steps: list[dict[str, Any]] = []
        for _ in range(5):
            grads = {k: rng.integers(-192, 193, s) / 64 for k, s in shapes.items()}
            oracle.step(grads)
            steps.append(
                {
                    "grads": _plain(grads),
                    "params": _plain(oracle.params()),
                    "state": _plain(oracle.state()),
                }
            )
        rows.append(
            {
                "name": case.name,
                "hparams": hparams,
                "requires": sorted(case.requires),
                "start": _plain(start),
                "steps": steps,
            }
        )
    return rows


def _plain(tree: Tree) -> dict[str, Any]:
    return {k: v.tolist() for k, v in tree.items()}
