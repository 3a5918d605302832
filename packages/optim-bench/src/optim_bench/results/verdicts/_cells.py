"""What one optimizer did on one workload: its search, its fresh seeds, its memory."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from optim_bench.protocol import Cell, Plan, Trial, Tuning, Values, tuning_of
from optim_bench.records import RunRecord
from optim_bench.results.stats import best_of, steps_to_target
from optim_bench.results.verdicts._range import exp, mean

Records = Mapping[str, RunRecord]
# Learning rates whose loss is within this factor of the best count as good ones.
GOOD_FACTOR = 1.05
# A band needs at least this many seeds.
SMALLEST_CURVE = 2


def measure_cell(plan: Plan, cell: Cell, records: Records) -> dict[str, Any]:
    """Return everything the results say about a cell, from its records alone."""
    tuning = tuning_of(cell, plan.budget, records)
    key = f"{cell.framework}/{cell.label}"
    best = tuning.best
    fresh = [] if best is None else _runs(cell, best.rate, plan.budget.fresh, records, best.values)
    defaults = _runs(cell, cell.default_rate, plan.budget.fresh, records)
    tried = [run for t in tuning.trials for run in _runs(cell, t.rate, t.losses, records, t.values)]
    sample = next((r for r in [*fresh, *tried] if r.status != "failed"), None)
    return {
        "name": cell.name,
        "workload": cell.workload,
        "framework": cell.framework,
        "optimizer": cell.optimizer,
        "label": cell.label,
        "title": plan.titles[key],
        "family": plan.families[key],
        "hyperparameters": {
            name: value for name, value in cell.hyperparameters.items() if name != "learning_rate"
        },
        "steps": cell.steps,
        "schedule": cell.schedule,
        "tuning": {
            "trials": [_trial(trial, plan.budget.tuning_seeds, tuning) for trial in tuning.trials],
            "selected": tuning.selected,
            **({"values": dict(best.values)} if best and best.values else {}),
            "under_tuned": tuning.under_tuned,
            "complete": not tuning.missing,
            "failed": sum(record.status == "failed" for record in tried),
            "steps": len(tried) * cell.steps,
            "good_decades": None if cell.points else _good_decades(tuning.trials),
            "best_of": _best_of(tuning.trials),
        },
        "fresh": _summary(cell, fresh, plan.budget.fresh),
        "defaults": {
            "learning_rate": cell.default_rate,
            **_summary(cell, defaults, plan.budget.fresh),
        },
        "curve": _curve(cell, fresh),
        "steps_to_target": _steps_to_target(plan, cell, fresh),
        "parameters": sample.parameters if sample else None,
        "parameter_bytes": sample.parameter_bytes if sample else None,
        "state_bytes": sample.state_bytes if sample else None,
        **_judged(plan, cell),
    }


def _judged(plan: Plan, cell: Cell) -> dict[str, Any]:
    """Return what is judged and where, of a task from outside."""
    facts = plan.workloads[cell.workload]
    if not facts.get("own"):
        return {}
    return {
        "judged": {
            "metric": cell.judged,
            "larger_is_better": cell.larger_is_better,
            "split": facts.get("verdict_on", "test"),
        }
    }


def fresh_losses(cell: Mapping[str, Any], part: str = "fresh") -> dict[int, float]:
    """Return seed -> what is judged on test, the smaller the better, of a measured cell.

    It is inf where the run diverged; failed runs are absent.

    Args:
        cell: as `measure_cell` returns it.
        part: `"fresh"` for the selected learning rate, `"defaults"` for the authors' own.
    """
    # Evidence of earlier versions judged losses alone, and had no other column for it.
    costs = {r["seed"]: r.get("cost", r["test_loss"]) for r in cell[part]["runs"] if _ran(r)}
    return {seed: math.inf if cost is None else cost for seed, cost in costs.items()}


def judged_mean(cell: Mapping[str, Any], part: str = "fresh") -> float | None:
    """Return the geometric mean over seeds of what is judged, to which ratios are exact.

    Args:
        cell: as `measure_cell` returns it.
        part: as `fresh_losses` takes it.
    """
    costs = [fresh_losses(cell, part)[r["seed"]] for r in cell[part]["runs"] if r["status"] == "ok"]
    if not costs:
        return None
    sign = -1 if cell.get("judged", {}).get("larger_is_better") else 1
    if min(costs) == 0 or max(costs) == math.inf:
        return 0.0
    return exp(sign * mean([math.log(cost) for cost in costs]))


def other_metrics(cell: Mapping[str, Any]) -> str:
    """Return the means of what else was measured where the verdict is, as text."""
    judged = cell.get("judged", {}).get("metric", "loss")
    return ", ".join(
        f"{name.removeprefix('test_').replace('_', ' ')} {value:.4g}"
        for name, value in cell["fresh"]["mean"].items()
        if name.startswith("test_") and name != f"test_{judged}"
    )


def _ran(run: Mapping[str, Any]) -> bool:
    return run["status"] != "failed"


def _runs(
    cell: Cell,
    rate: float,
    seeds: Iterable[int],
    records: Records,
    values: Values | None = None,
) -> list[RunRecord]:
    found = (records.get(cell.spec(rate, seed, values).key()) for seed in seeds)
    return [record for record in found if record is not None]


def _trial(trial: Trial, seeds: int, tuning: Tuning) -> dict[str, Any]:
    stopped = not tuning.missing and len(trial.losses) < seeds
    return {
        "learning_rate": trial.rate,
        "extension": trial.extension,
        "val_loss": [finite(loss) for _, loss in sorted(trial.losses.items())],
        "mean_log_val_loss": finite(trial.score) if trial.losses else None,
        **({"values": dict(trial.values)} if trial.values else {}),
        **({"stopped": True} if stopped else {}),
    }


def _scores(trials: Sequence[Trial]) -> list[float]:
    """Return the scores on the seeds that all trials have, or nothing while one has none."""
    shared = min((len(trial.losses) for trial in trials), default=0)
    whole = shared and not any(trial.missing for trial in trials)
    return [trial.score_on(shared) for trial in trials] if whole else []


def _best_of(trials: Sequence[Trial]) -> dict[str, list[float | None]]:
    """Return what the best of k of these learning rates would have been, as a validation loss."""
    scores = _scores(trials)
    if not scores:
        return {name: [] for name in ("expected", "low", "high")}
    found = best_of(scores)
    return {
        name: [_loss(getattr(best, name)) for best in found] for name in ("expected", "low", "high")
    }


def _loss(score: float) -> float | None:
    return 0.0 if score == -math.inf else exp(score)


def _good_decades(trials: Sequence[Trial]) -> float | None:
    """Return the width of the unbroken range of good learning rates around the best, in decades."""
    scores = _scores(trials)
    if not scores or min(scores) == math.inf:
        return None
    best = scores.index(min(scores))
    limit = scores[best] + math.log(GOOD_FACTOR)
    first = last = best
    while first > 0 and scores[first - 1] <= limit:
        first -= 1
    while last < len(scores) - 1 and scores[last + 1] <= limit:
        last += 1
    return round(math.log10(trials[last].rate / trials[first].rate), 2)


def _summary(cell: Cell, records: Sequence[RunRecord], seeds: Sequence[int]) -> dict[str, Any]:
    ok = [record for record in records if record.status == "ok"]
    names = sorted({name for record in ok for name in record.metrics})
    columns = {
        name: [v for record in ok if (v := record.metrics.get(name)) is not None] for name in names
    }
    return {
        "planned": len(seeds),
        "ok": len(ok),
        "diverged": sum(record.status == "diverged" for record in records),
        "failed": sum(record.status == "failed" for record in records),
        "missing": len(seeds) - len(records),
        "mean": {name: mean(values) for name, values in columns.items() if values},
        "deviation": {
            name: statistics.stdev(values) for name, values in columns.items() if len(values) > 1
        },
        "runs": [
            {
                "seed": record.spec.seed,
                "key": record.spec.key(),
                "status": record.status,
                "learning_rate": record.spec.hyperparameters["learning_rate"],
                **{name: record.metrics[name] for name in ("train_loss", "val_loss", "test_loss")},
                **_cost(cell, record),
            }
            for record in records
        ],
    }


def _cost(cell: Cell, record: RunRecord) -> dict[str, float | None]:
    """Return the column of what is judged, where that is not the loss."""
    if cell.judged == "loss":
        return {}
    return {"cost": finite(cell.cost(record.metrics.get(f"test_{cell.judged}")))}


def _curve(cell: Cell, records: Sequence[RunRecord]) -> dict[str, list[float | None]]:
    """Return median and quartiles of what is judged on validation over the seeds, step by step.

    A diverged seed counts as the worst there is: it pulls a quartile off the chart, and not to the
    good side.
    """
    usable = [r for r in records if r.status != "failed" and r.curve["step"]]
    # A run that diverged early has the first points only.
    longest = max(usable, key=lambda r: len(r.curve["step"]), default=None)
    names = ("step", "median", "low", "high")
    if longest is None or len(usable) < SMALLEST_CURVE:
        return {name: [] for name in names}
    columns: dict[str, list[float | None]] = {name: [] for name in names}
    for index, step in enumerate(longest.curve["step"]):
        values = sorted(_point(cell, record, index) for record in usable)
        columns["step"].append(step)
        for name, share in (("low", 0.25), ("median", 0.5), ("high", 0.75)):
            columns[name].append(finite(_quantile(values, share)))
    return columns


def _point(cell: Cell, record: RunRecord, index: int) -> float:
    values = record.curve[f"val_{cell.judged}"]
    value = values[index] if index < len(values) else None
    worst = 0.0 if cell.larger_is_better else math.inf
    return worst if value is None else value


def _quantile(ordered: Sequence[float], share: float) -> float:
    position = share * (len(ordered) - 1)
    below = math.floor(position)
    weight = position - below
    if weight == 0:
        return ordered[below]
    # Between infinities the difference is NaN, the sum of the weighted parts is not.
    return (1 - weight) * ordered[below] + weight * ordered[below + 1]


def _steps_to_target(plan: Plan, cell: Cell, records: Sequence[RunRecord]) -> dict[str, Any] | None:
    target = plan.workloads[cell.workload]["target"]
    if target is None:
        return None
    steps = [
        steps_to_target(r.curve["step"], r.curve[target["metric"]], target["value"])
        for r in records
        if r.status != "failed"
    ]
    return {
        "target": target["value"],
        "runs": [finite(value) for value in steps],
        "reached": sum(map(math.isfinite, steps)),
        "median": finite(statistics.median(steps)) if steps else None,
    }


def finite(value: float) -> float | None:
    """Return the value, or None for what strict JSON cannot hold."""
    return value if math.isfinite(value) else None
