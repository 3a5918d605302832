"""Records and plans for the tests of everything around training."""

import json
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import pytest
from optim_bench.protocol import Budget, Cell, Plan, next_specs
from optim_bench.records import RunRecord, RunSpec
from optim_bench.results.verdicts import build_results, validate_results

BUDGET = Budget(grid_points=3, tuning_seeds=1, fresh_seeds=10, extensions=0, defaults=False)


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


@pytest.fixture
def score(
    make_plan: Callable[..., Plan], make_record: Callable[..., RunRecord]
) -> Callable[..., dict[str, Any]]:
    """Build results from optimizer -> fresh losses (None is divergence, "failed", "missing")."""

    def run(
        losses: Mapping[str, list[Any]],
        *,
        budget: Budget = BUDGET,
        edge: Collection[str] = (),
        **options: Any,
    ) -> dict[str, Any]:
        frameworks = options.pop("frameworks", {"jax": tuple(losses)})
        plan = make_plan(frameworks, budget, **options)
        records: dict[str, RunRecord] = {}
        for _ in range(2):
            for cell in plan.cells:
                for spec in next_specs(cell, budget, records):
                    rate: Any = spec.hyperparameters["learning_rate"]
                    if spec.seed < 100:
                        loss = 1 / rate if cell.label in edge else math.log10(rate / 1e-3) ** 2 + 1
                    else:
                        loss = losses[cell.label][spec.seed - 100]
                    if loss == "missing":
                        continue
                    if loss == "failed":
                        record = make_record(spec, None, status="failed", error="it broke")
                    else:
                        record = make_record(spec, loss)
                    records[spec.key()] = record
        results = build_results(plan, records)
        assert validate_results(json.loads(json.dumps(results, allow_nan=False))) == []
        return results

    return run
