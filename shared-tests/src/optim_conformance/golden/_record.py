"""Writing golden files from the oracle."""

from __future__ import annotations

from typing import Any

import numpy as np

from optim_conformance.adapter import Tree
from optim_conformance.oracle import Oracle

_PARITY = "stam-optimizer-0.1.0"
_ROLES = {"x": "sign", "y": "adamw"}
_QUICK = {"learning_rate": 0.01, "b2": 0.9, "tau_decay": 0.8, "fallback_threshold": 1.5}

CASES: dict[str, list[tuple[str, dict[str, Any], list[str]]]] = {
    "stam": [
        ("defaults", {}, []),
        ("quick", _QUICK, []),
        ("corrected", {**_QUICK, "statistics": "corrected"}, ["corrected"]),
        ("parity", {**_QUICK, "parity": _PARITY}, ["parity"]),
    ],
    "stam_lite": [
        ("defaults", {}, []),
        ("interval", {"learning_rate": 0.01, "beta1_update_interval": 2, "moment_decay": 0.8}, []),
        ("parity", {"parity": _PARITY}, ["parity"]),
    ],
    "stac": [
        ("roles", {"roles": _ROLES}, []),
        (
            "scaled",
            {"roles": _ROLES, "learning_rate": 0.01, "sign_lr_scale": 0.75, "weight_decay": 0.1},
            [],
        ),
        ("stateless", {"roles": _ROLES, "sign_momentum": 0.0}, []),
    ],
    "adamw": [("decay", {"learning_rate": 0.01, "weight_decay": 0.1}, [])],
}


def record(opt: str) -> list[dict[str, Any]]:
    """Return the content of an optimizer's golden file, computed now.

    Inputs are multiples of 1/64, exact in every float type, so that only the arithmetic differs
    between implementations.
    """
    rows: list[dict[str, Any]] = []
    for number, (name, hparams, requires) in enumerate(CASES[opt]):
        rng = np.random.default_rng([20, number])
        shapes = {"x": (2, 2), "y": (3,)}
        start = {k: rng.integers(-64, 65, s) / 64 for k, s in shapes.items()}
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
                "name": name,
                "hparams": hparams,
                "requires": requires,
                "start": _plain(start),
                "steps": steps,
            }
        )
    return rows


def _plain(tree: Tree) -> dict[str, Any]:
    return {k: v.tolist() for k, v in tree.items()}
