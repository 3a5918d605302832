"""The measure of `evidence/rules-plan.md`, from `evidence/rules.json`: regrets, their bootstrap."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

DEVELOPMENT = ("digits-noisy", "patches-denoise", "diamonds-mlp", "shakespeare-char")
HELD_OUT = ("digits-cnn", "permuted-digits", "shifted-mlp", "numpy-words", "flights-stream")
SAMPLES, SEED = 10_000, 18
Losses = Mapping[str, Mapping[str, NDArray[np.float64]]]


def losses(results: Mapping[str, Any], workloads: Sequence[str]) -> Losses:
    """Return log test losses by workload and entry, one per fresh seed; inf where one diverged."""
    found: dict[str, dict[str, NDArray[np.float64]]] = {w: {} for w in workloads}
    for workload in workloads:
        for name, cell in results["cells"].get(workload, {}).items():
            values = [math.inf if x is None else math.log(x) for x in cell["test"]]
            found[workload][name] = np.array(values or [math.inf])
    return found


def complete(logs: Losses) -> list[str]:
    """Return the entries that are finished on every workload, in the order of the first."""
    first, *rest = logs.values()
    return [name for name in first if all(name in other for other in rest)]


def regrets(means: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> NDArray[np.float64]:
    """Return regrets, axes (workload, entry, ...): mean log loss less the smallest of `names`.

    Example:
        >>> regrets({"w": {"a": 1.0, "b": 3.0}}, ["a", "b"]).tolist()
        [[0.0, 2.0]]
    """
    table = np.array([[means[w][name] for name in names] for w in means])
    return table - table.min(axis=1, keepdims=True)


def resampled(logs: Losses, names: Sequence[str]) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Return bootstrap means, `SAMPLES` of them: the same draw of seeds for all entries."""
    rng = np.random.default_rng(SEED)
    found = {}
    for workload, entries in logs.items():
        seeds = len(entries[names[0]])
        drawn = rng.integers(0, seeds, (SAMPLES, seeds))
        found[workload] = {name: entries[name][drawn].mean(axis=1) for name in names}
    return found


def scores(logs: Losses) -> dict[str, dict[str, Any]]:
    """Return regrets, the worst of them and its interval for every complete entry."""
    names = complete(logs)
    if not names:
        return {}
    point = regrets({w: {n: logs[w][n].mean() for n in names} for w in logs}, names)
    worst = regrets(resampled(logs, names), names).max(axis=0)
    found = {}
    for i, name in enumerate(names):
        low, high = np.quantile(worst[i], [0.025, 0.975])
        found[name] = {
            "regrets": dict(zip(logs, point[:, i].tolist(), strict=True)),
            "worst": float(point[:, i].max()),
            "low": float(low),
            "high": float(high),
        }
    return found


def lead(logs: Losses, name: str, others: Sequence[str]) -> tuple[float, float, float]:
    """Return the smallest worst regret of `others` less that of `name`, with its interval.

    Above 0 where `name` is better. The best of the others is found anew in each bootstrap sample.

    Example:
        >>> logs = {"w": {n: np.full(2, x) for n, x in (("a", 0.0), ("b", 0.1), ("c", 0.3))}}
        >>> [round(x, 6) for x in lead(logs, "a", ["b", "c"])]
        [0.1, 0.1, 0.1]
    """
    names = complete(logs)
    own, rest = names.index(name), [names.index(other) for other in others]
    means = {w: {n: logs[w][n].mean() for n in names} for w in logs}
    point = regrets(means, names).max(axis=0)
    drawn = regrets(resampled(logs, names), names).max(axis=0)
    low, high = np.quantile(drawn[rest].min(axis=0) - drawn[own], [0.025, 0.975])
    return float(point[rest].min() - point[own]), float(low), float(high)


def ratio(logs: Losses, workload: str, left: str, right: str) -> tuple[float, float, float] | None:
    """Return the ratio of two entries' losses with its interval; None where one is missing."""
    if not {left, right} <= set(logs[workload]):
        return None
    drawn = resampled({workload: logs[workload]}, [left, right])[workload]
    low, high = np.quantile(drawn[left] - drawn[right], [0.025, 0.975])
    point = logs[workload][left].mean() - logs[workload][right].mean()
    return math.exp(point), math.exp(low), math.exp(high)


def state(results: Mapping[str, Any], name: str, workloads: Sequence[str] = DEVELOPMENT) -> float:
    """Return the largest number of state entries per parameter over the workloads that ran."""
    cells = (results["cells"].get(w, {}).get(name) for w in workloads)
    return max(cell["state"] for cell in cells if cell)
