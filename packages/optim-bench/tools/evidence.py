"""Train what the evidence page needs, and build the page.

    python packages/optim-bench/tools/evidence.py STORES [--no-train]
    python packages/optim-bench/tools/evidence.py --render

STORES gets one folder per framework and workload. Training takes a day on one core; it resumes, and
finished runs are never repeated. The page is built from the workloads that are complete, whatever
they show; with `--no-train` nothing is trained before, and `--render` writes the page of the
committed `results.json` anew. What is compared is fixed in this file, and what the page says about
it in `evidence_page.py`.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from evidence_page import FIGURES, figure_names, page
from optim_bench.executors import DEFAULT_TRAINER, make_executor
from optim_bench.optimizers import resolve
from optim_bench.protocol import Phase, Plan
from optim_bench.protocol.campaign import progress_of, run_campaign
from optim_bench.protocol.catalog import Request, build_plan
from optim_bench.records import FRAMEWORKS, RunRecord
from optim_bench.report.pages._write import figures
from optim_bench.results.store import Store, read_json, write_bytes
from optim_bench.results.verdicts import build_results, validate_results

PACKAGE = Path(__file__).resolve().parents[1]
EVIDENCE = PACKAGE / "evidence"
TIER = "standard"
WORKLOADS = (
    "digits-cnn",
    "diamonds-mlp",
    "permuted-digits",
    "digits-noisy",
    "shifted-mlp",
    "patches-denoise",
    "shakespeare-char",
)
# Synthetic, so what is found there is no test.
DIAGNOSTIC = frozenset({"shifted-mlp"})
OPTIMIZERS: Mapping[str, tuple[str, ...]] = {
    "jax": (
        "stam",
        "stam_corrected",
        "stam_lite",
        "novograd",
        "adamw_b1_079",
        "adamw,b1=0.5",
        "adamw,b1=0.7",
        "adamw,b1=0.95",
        "adamw",
    ),
    "torch": ("stac", "stac_wide", "stac_plain", "stac_int8", "lion", "signum", "adamw"),
}


def is_ours(name: str, framework: str) -> bool:
    """Return whether an optimizer is one of those whose tests share the corrected level."""
    return "," not in name and resolve(name, framework).family == "ours"


def train(root: Path, jobs: int | None) -> None:
    """Run every comparison that is not complete."""
    for workload in WORKLOADS:
        for framework in FRAMEWORKS:
            names = OPTIMIZERS[framework]
            apart = [n for n in names if workload in DIAGNOSTIC or not is_ours(n, framework)]
            request = Request(TIER, (workload,), names, (framework,), exploratory=apart)
            plan = build_plan(request)
            # The whole grid on every tuning seed, from which a search that halves is replayed.
            plan = replace(plan, budget=replace(plan.budget, halving=False))
            store = Store(root / f"{framework}-{workload}")
            store.open()
            with store.exclusive():
                store.register(plan)
                workers = make_executor("process", DEFAULT_TRAINER, jobs=jobs)
                try:
                    run_campaign(plan, store, workers, lambda progress: None)
                finally:
                    workers.close()
            print(f"{framework} {workload}: complete", flush=True)  # noqa: T201


def collect(root: Path) -> tuple[Plan, dict[str, RunRecord]]:
    """Return one plan over the complete comparisons, with their records."""
    plans: list[Plan] = []
    records: dict[str, RunRecord] = {}
    for framework in FRAMEWORKS:
        for workload in WORKLOADS:
            store = Store(root / f"{framework}-{workload}")
            if not (store.root / "plan.json").is_file():
                continue
            plan, found = store.plan(), store.records()
            cells = progress_of(plan, found).cells.values()
            if all(cell.phase is Phase.DONE for cell in cells):
                plans.append(plan)
                records |= found
    if not plans:
        raise SystemExit(f"no comparison in {root} is complete")
    if len({(plan.tier, plan.budget) for plan in plans}) != 1:
        raise SystemExit(f"the comparisons in {root} have different budgets")
    return (
        Plan(
            tier=plans[0].tier,
            budget=plans[0].budget,
            cells=tuple(cell for plan in plans for cell in plan.cells),
            family=tuple(name for plan in plans for name in plan.family),
            titles={k: v for plan in plans for k, v in plan.titles.items()},
            families={k: v for plan in plans for k, v in plan.families.items()},
            workloads={k: v for plan in plans for k, v in plan.workloads.items()},
        ),
        records,
    )


def write(results: Mapping[str, Any]) -> None:
    """Write the evidence folder."""
    folder = EVIDENCE / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    names = figure_names(results)
    for old in folder.glob("*.svg"):
        if old.name not in names:
            old.unlink()
    for name, content in figures(results, FIGURES):
        if name in names:
            write_bytes(folder / name, content)
    text = json.dumps(results, sort_keys=True, separators=(",", ":"), allow_nan=False)
    write_bytes(EVIDENCE / "results.json", (text + "\n").encode())
    write_bytes(EVIDENCE / "README.md", page(results, WORKLOADS).encode())


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and build.

    Args:
        arguments: instead of the process's own.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("stores", type=Path, nargs="?", help="folder of the comparisons")
    source.add_argument("--render", action="store_true", help="build from the committed results")
    parser.add_argument("--no-train", action="store_true", help="build from what is there")
    parser.add_argument("--jobs", type=int, help="runs at a time")
    given = parser.parse_args(arguments)
    if given.render:
        if given.no_train or given.jobs is not None:
            parser.error("--no-train and --jobs are for the folder of the comparisons")
        write(read_json(EVIDENCE / "results.json"))
        return
    if not given.no_train:
        train(given.stores, given.jobs)
    plan, records = collect(given.stores)
    results = build_results(plan, records)
    if problems := validate_results(json.loads(json.dumps(results, allow_nan=False))):
        raise SystemExit(problems[0])
    write(results)


if __name__ == "__main__":
    main()
