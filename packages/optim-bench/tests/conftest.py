"""Records and plans for the tests of everything around training."""

from collections.abc import Callable, Mapping

import pytest
from optim_bench.protocol import Budget, Cell, Plan
from optim_bench.records import RunRecord, RunSpec


@pytest.fixture
def make_record() -> Callable[..., RunRecord]:
    def make(spec: RunSpec, loss: float | None, **changes: object) -> RunRecord:
        metrics = dict.fromkeys(("train_loss", "val_loss", "test_loss"), loss)
        fields: dict[str, object] = {
            "spec": spec,
            "status": "diverged" if loss is None else "ok",
            "metrics": metrics,
            "curve": {"step": [10, 20], "train_loss": [loss, loss], "val_loss": [loss, loss]},
            "parameters": 100,
            "parameter_bytes": 400,
            "state_bytes": 800,
            "seconds": {"total": 1.0},
            "environment": {"python": "3"},
            "error": None,
        }
        return RunRecord(**{**fields, **changes})  # pyright: ignore[reportArgumentType]

    return make


@pytest.fixture(scope="session")
def make_plan() -> Callable[..., Plan]:
    def make(
        optimizers: Mapping[str, tuple[str, ...]],
        budget: Budget,
        *,
        workloads: tuple[str, ...] = ("toy",),
        kind: str = "real",
        target: float | None = None,
    ) -> Plan:
        cells = tuple(
            Cell(w, 1, f, name, name, {"learning_rate": 1e-3}, 1e-3, 0.0, 1e3, 40, "cosine")
            for w in workloads
            for f, names in optimizers.items()
            for name in names
        )
        facts = {
            "version": 1,
            "title": "a toy",
            "kind": kind,
            "loss": "squared_error",
            "batch": 1,
            "metrics": [],
            "licence": "",
            "target": target and {"metric": "val_loss", "value": target, "origin": "made up"},
        }
        keys = {f"{c.framework}/{c.label}": c.label for c in cells}
        return Plan(
            tier="quick",
            budget=budget,
            cells=cells,
            family=tuple(c.name for c in cells if c.label != "adamw" and kind == "real"),
            titles={key: label.upper() for key, label in keys.items()},
            families={k: "baseline" if v == "adamw" else "ours" for k, v in keys.items()},
            workloads=dict.fromkeys(workloads, facts),
        )

    return make
