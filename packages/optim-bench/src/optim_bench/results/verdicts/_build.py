"""Assemble `results.json`: a pure function of the plan and the records, without clock or chance."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from optim_bench.errors import BenchError
from optim_bench.protocol import ALPHA, BUDGET_TIER, LEVEL, PROTOCOL, Plan, known_specs
from optim_bench.records import FRAMEWORKS, RunRecord
from optim_bench.results.stats import (
    Interval,
    bootstrap_aggregates,
    log_ratio,
    performance_profile,
    profile_area,
)
from optim_bench.results.store import Store, read_json
from optim_bench.results.verdicts._cells import fresh_losses, measure_cell
from optim_bench.results.verdicts._compare import compare_cells
from optim_bench.results.verdicts._range import exp
from optim_bench.results.verdicts._schema import SCHEMA_VERSION
from optim_bench.results.verdicts._searches import search_rows
from optim_bench.results.verdicts._times import add_times, time_sources
from optim_bench.results.verdicts._words import headline, verdict_sentence

Measured = Mapping[str, Any]
RANKED = frozenset(
    {
        "better",
        "worse",
        "not confirmed",
        "no difference",
        "too few seeds",
        "unstable",
        "exploratory",
    }
)
PROFILE_RATIOS = (1.0, 1.1, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0)

SMALL = "Small workloads (up to about 100,000 parameters): they do not predict large models."
CAUTIONS = {
    "smoke": "A smoke test of the machinery: far too short to say anything about an optimizer.",
    "quick": (
        "A smoke-size comparison: small workloads, short runs, a coarse search. It shows how these "
        "optimizers behave here; it says nothing yet about your problem."
    ),
    "standard": SMALL,
    "full": SMALL,
    BUDGET_TIER: SMALL,
}


def results_of(store: Store) -> dict[str, Any]:
    """Return the results of a folder: its plan, its runs, and its `times.json` where there is one.

    Raises:
        BenchError: a file is missing or damaged.
    """
    path = store.root / "times.json"
    try:
        times = read_json(path) if path.is_file() else None
    except (OSError, ValueError) as error:
        raise BenchError(
            f"{path} cannot be read ({error}); measure anew: optim-bench time --directory "
            f"{store.root}"
        ) from error
    results = build_results(store.plan(), store.records(), times)
    return {**results, "history": store.history()}


def build_results(
    plan: Plan, records: Mapping[str, RunRecord], times: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the content of `results.json`.

    Args:
        plan: what was compared.
        records: every record of the store by key; those outside the plan are left out.
        times: what `optim-bench time --json` wrote, where step times are known.
    """
    cells = [measure_cell(plan, cell, records) for cell in plan.cells]
    add_times(cells, times)
    used = _used(cells, plan, records)
    frameworks = [f for f in FRAMEWORKS if any(cell["framework"] == f for cell in cells)]
    comparisons = [c for f in frameworks for c in compare_cells(plan, cells, f)]
    sentences: list[str] = []
    for framework in frameworks:
        baseline_title = plan.titles[f"{framework}/{plan.baseline}"]
        mine = [c for c in comparisons if c["framework"] == framework]
        sentences += headline(mine, framework, baseline_title)
        for comparison in mine:
            comparison["sentence"] = verdict_sentence(comparison, baseline_title)
    return {
        "schema_version": SCHEMA_VERSION,
        "protocol": {
            "version": PROTOCOL,
            "tier": plan.tier,
            "plan_sha256": plan.digest(),
            "baseline": plan.baseline,
            "alpha": ALPHA,
            "level": LEVEL,
            "budget": plan.budget.to_json(),
            "family": list(plan.family),
        },
        "headline": sentences,
        "cautions": _cautions(plan, cells, comparisons, used),
        "workloads": [{"name": name, **facts} for name, facts in sorted(plan.workloads.items())],
        "cells": cells,
        "comparisons": comparisons,
        "aggregates": [a for f in frameworks for a in _aggregates(plan, cells, comparisons, f)],
        "searches": [s for f in frameworks for s in _searches(plan, cells, f)],
        "times": time_sources(cells, times),
        "profiles": [p for f in frameworks for p in _profiles(cells, f, plan.baseline)],
        "failures": [
            {"key": record.spec.key(), "status": record.status, "error": record.error}
            | {name: getattr(record.spec, name) for name in ("workload", "framework", "optimizer")}
            | {"seed": record.spec.seed}
            | {"learning_rate": record.spec.hyperparameters["learning_rate"]}
            for record in used
            if record.status != "ok"
        ],
        "environment": _environment(used),
        "runs": len(used),
    }


def _used(
    cells: Sequence[Measured], plan: Plan, records: Mapping[str, RunRecord]
) -> list[RunRecord]:
    keys: dict[str, None] = {}
    for cell, measured in zip(plan.cells, cells, strict=True):
        keys.update((spec.key(), None) for spec in known_specs(cell, plan.budget, records))
        for part in ("fresh", "defaults"):
            keys.update(dict.fromkeys(run["key"] for run in measured[part]["runs"]))
    return [records[key] for key in keys if key in records]


def _cautions(
    plan: Plan,
    cells: Sequence[Measured],
    comparisons: Sequence[Measured],
    used: Sequence[RunRecord],
) -> list[str]:
    own = {name: facts for name, facts in plan.workloads.items() if facts.get("own")}
    cautions = [] if len(own) == len(plan.workloads) else [CAUTIONS[plan.tier]]
    steps = {cell.workload: cell.steps for cell in plan.cells}
    for name, facts in sorted(own.items()):
        cautions.append(
            f"{name} is your own task: what is said holds for runs of {steps[name]} steps."
        )
        if "verdict_on" in facts:
            cautions.append(
                f"{name} holds back no test examples: its verdicts are on validation, which also "
                "chose the learning rates, and so flatter what is tuned with luck."
            )
    if plan.added:
        cautions.append(
            f"Entered after the first results, and therefore exploratory: {', '.join(plan.added)}."
        )
    if any(c["verdict"] == "too few seeds" for c in comparisons):
        cautions.append(
            f"Where the verdict is 'too few seeds', {plan.budget.fresh_seeds} paired seeds cannot "
            f"reach the level of {ALPHA:g} for the family, whatever the outcome; use --seeds."
        )
    if misled := [c["name"] for c in comparisons if c["verdict"] == "not confirmed"]:
        cautions.append(
            "Better than the tuned baseline, but not than the baseline at its default learning "
            f"rate, so no improvement: {', '.join(misled)}."
        )
    lost = [c["name"] for c in cells if c["tuning"]["complete"] and not c["tuning"]["selected"]]
    if lost:
        cautions.append(
            f"Diverged at every learning rate tried, and therefore not ranked: {', '.join(lost)}; "
            "where all do, look at the numbers of loss and evaluate."
        )
    tuned_less = (cell["name"] for cell in cells if cell["tuning"]["under_tuned"])
    if under := [name for name in tuned_less if name not in lost]:
        cautions.append(f"Under-tuned and therefore not ranked: {', '.join(under)}.")
    if mixed := sorted(name for name, values in _environment(used).items() if len(values) > 1):
        cautions.append(f"Runs come from different environments ({', '.join(mixed)}).")
    synthetic = [n for n, facts in sorted(plan.workloads.items()) if facts["kind"] != "real"]
    if synthetic:
        cautions.append(f"Synthetic, outside every aggregate: {', '.join(synthetic)}.")
    return cautions


def _aggregates(
    plan: Plan, cells: Sequence[Measured], comparisons: Sequence[Measured], framework: str
) -> list[dict[str, Any]]:
    """Summarize the optimizers that have a result on every real workload of the framework."""
    mine = [c for c in comparisons if c["framework"] == framework]
    here = {cell["workload"] for cell in cells if cell["framework"] == framework}
    real = [n for n, facts in sorted(plan.workloads.items()) if n in here and _is_real(facts)]
    by_name = {cell["name"]: cell for cell in cells}
    scores: dict[str, dict[str, dict[int, float]]] = {}
    for label in dict.fromkeys(c["label"] for c in mine):
        ranked = {c["workload"] for c in mine if c["label"] == label and c["verdict"] in RANKED}
        if not real or not ranked.issuperset(real):
            continue
        scores[label] = {
            workload: _log_ratios(
                by_name[f"{workload}/{framework}/{label}"],
                by_name[f"{workload}/{framework}/{plan.baseline}"],
            )
            for workload in real
        }
    if not scores:
        return []
    summaries = bootstrap_aggregates(scores, level=LEVEL)
    return [
        {
            "framework": framework,
            "label": label,
            "title": plan.titles[f"{framework}/{label}"],
            "workloads": real,
            "seeds": plan.budget.fresh_seeds,
            "interquartile_ratio": _ratio_interval(summaries[label]["interquartile_mean"]),
            # One workload says nothing about others.
            "interquartile_ratio_over_workloads": (
                _ratio_interval(summaries[label]["interquartile_mean_over_workloads"])
                if len(real) > 1
                else None
            ),
            "probability_of_improvement": vars(summaries[label]["probability_of_improvement"]),
        }
        for label in scores
    ]


def _searches(plan: Plan, cells: Sequence[Measured], framework: str) -> list[dict[str, Any]]:
    rows = search_rows(plan, cells, framework)
    for row in rows:
        for comparison in row["comparisons"]:
            comparison["sentence"] = verdict_sentence(comparison, row["title"])
    return rows


def _is_real(facts: Mapping[str, Any]) -> bool:
    return facts["kind"] == "real"


def _log_ratios(cell: Measured, baseline: Measured) -> dict[int, float]:
    mine, theirs = fresh_losses(cell), fresh_losses(baseline)
    return {seed: log_ratio(mine[seed], theirs[seed]) for seed in sorted(set(mine) & set(theirs))}


def _ratio_interval(interval: Interval) -> dict[str, float | None]:
    return {name: exp(value) for name, value in vars(interval).items()}


def _profiles(cells: Sequence[Measured], framework: str, baseline: str) -> list[dict[str, Any]]:
    """Return the profile of steps to target over (workload, seed), where workloads have one.

    A profile depends on who takes part, so each optimizer's profile in the company of the baseline
    alone stands beside the profile of all. An optimizer that is under-tuned or incomplete on one of
    the workloads takes no part.
    """
    mine = [c for c in cells if c["framework"] == framework and c["steps_to_target"] is not None]
    mine.sort(key=lambda cell: cell["workload"])
    workloads = list(dict.fromkeys(cell["workload"] for cell in mine))
    costs: dict[str, list[float]] = {}
    for label in dict.fromkeys(cell["label"] for cell in mine):
        own = [cell for cell in mine if cell["label"] == label]
        if [cell["workload"] for cell in own] == workloads and all(map(_is_ranked, own)):
            runs = [steps for cell in own for steps in cell["steps_to_target"]["runs"]]
            costs[label] = [math.inf if steps is None else steps for steps in runs]
    if baseline not in costs:
        return []
    profile = performance_profile(costs, PROFILE_RATIOS)
    return [
        {
            "framework": framework,
            "workloads": workloads,
            "ratios": list(PROFILE_RATIOS),
            "shares": profile,
            "areas": {n: profile_area(PROFILE_RATIOS, shares) for n, shares in profile.items()},
            "pairwise": {
                label: performance_profile(
                    {label: costs[label], baseline: costs[baseline]}, PROFILE_RATIOS
                )
                for label in costs
                if label != baseline
            },
        }
    ]


def _is_ranked(cell: Measured) -> bool:
    fresh = cell["fresh"]
    return not (cell["tuning"]["under_tuned"] or fresh["missing"] or fresh["failed"])


def _environment(records: Sequence[RunRecord]) -> dict[str, list[str]]:
    values: dict[str, set[str]] = {}
    for record in records:
        for name, value in record.environment.items():
            values.setdefault(name, set()).add(value)
    return {name: sorted(found) for name, found in sorted(values.items())}
