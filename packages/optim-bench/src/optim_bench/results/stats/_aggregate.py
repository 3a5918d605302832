"""Aggregates over several workloads, with intervals from a seeded paired stratified bootstrap.

Scores are the log-ratios d[workload, seed] of an optimizer to the tuned baseline. The bootstrap
resamples seeds within each workload (stratified) and uses the same resampled seeds for every
optimizer (paired). It says how the summary would vary with other seeds; it says nothing about
other workloads, to which every aggregate here is conditional. How much that matters is shown by a
second, cruder bootstrap that resamples the workloads themselves, each with its seeds as they are:
with few workloads its interval is wide and still too narrow.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 5000
BOOTSTRAP_SEED = 20240607

# optimizer -> workload -> seed -> log-ratio to the baseline
Scores = Mapping[str, Mapping[str, Mapping[int, float]]]


@dataclass(frozen=True)
class Interval:
    """A value with the ends of its percentile interval."""

    value: float
    low: float
    high: float


def interquartile_mean(values: Sequence[float] | NDArray[np.float64]) -> float:
    """Return the mean of the middle half: a quarter of the values is cut off at each end.

    Infinite values (diverged runs) count; they vanish only where they fall into the cut.

    Raises:
        ValueError: no value, or a NaN.

    Example:
        >>> interquartile_mean([0.0, 1.0, 2.0, math.inf]), interquartile_mean([1.0, 2.0, 6.0])
        (1.5, 3.0)
    """
    array = np.sort(np.asarray(values, dtype=np.float64))
    if array.size == 0 or np.isnan(array).any():
        raise ValueError("the interquartile mean needs at least one value and no NaN")
    cut = array.size // 4
    return float(_mean(array[cut : array.size - cut]))


def probability_of_improvement(scores: Sequence[float] | NDArray[np.float64]) -> float:
    """Return the share of pairs with a lower loss than the baseline's; a tie counts one half.

    Example:
        >>> probability_of_improvement([-0.1, -0.2, 0.3, 0.0])
        0.625
    """
    array = np.asarray(scores, dtype=np.float64)
    return float(np.mean((array < 0) + 0.5 * (array == 0)))


def bootstrap_aggregates(
    scores: Scores,
    *,
    resamples: int = RESAMPLES,
    seed: int = BOOTSTRAP_SEED,
    level: float = 0.95,
) -> dict[str, dict[str, Interval]]:
    """Summarize each optimizer over all workloads.

    Args:
        scores: optimizer -> workload -> seed -> log-ratio; -inf and inf are allowed. All
            optimizers need the same workloads and, per workload, the same seeds.
        resamples: bootstrap repetitions.
        seed: of the generator, fixed so that a rebuilt report is the same report.
        level: confidence level.

    Returns:
        Per optimizer `"interquartile_mean"` of the log-ratios over all (workload, seed),
        `"interquartile_mean_over_workloads"`, the same value with the interval of the bootstrap
        over workloads, and `"probability_of_improvement"`, the mean over workloads of the share of
        better pairs.

    Raises:
        ValueError: optimizers differ in workloads or seeds, or there is nothing to summarize.

    Example:
        >>> scores = {"ours": {"w": {0: -0.2, 1: -0.1, 2: 0.1}}}
        >>> result = bootstrap_aggregates(scores)["ours"]["interquartile_mean"]
        >>> round(result.value, 4), round(result.low, 4), round(result.high, 4)
        (-0.0667, -0.2, 0.1)
    """
    designs = {_design(by_workload) for by_workload in scores.values()}
    if len(designs) != 1:
        raise ValueError(
            "every optimizer needs results on the same workloads and seeds; "
            f"got {len(designs)} different designs"
        )
    design = designs.pop()
    if not design or not all(seeds for _, seeds in design):
        raise ValueError("there is no workload with at least one seed to summarize")
    names = sorted(scores)
    tables = [
        np.array([[scores[name][workload][s] for s in seeds] for name in names], dtype=np.float64)
        for workload, seeds in design
    ]
    means, shares = _over_seeds(tables, resamples, seed)
    mean, share = _summaries(tables)
    others = _over_workloads(tables, resamples, seed) if len(tables) > 1 else mean[np.newaxis]
    tail = (1 - level) / 2
    return {
        name: {
            "interquartile_mean": _interval(float(mean[column]), means[:, column], tail),
            "interquartile_mean_over_workloads": _interval(
                float(mean[column]), others[:, column], tail
            ),
            "probability_of_improvement": _interval(float(share[column]), shares[:, column], tail),
        }
        for column, name in enumerate(names)
    }


# Resamples at a time: all at once would take a gigabyte for many optimizers and seeds.
_CHUNK = 500


def _over_seeds(
    tables: Sequence[NDArray[np.float64]], resamples: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Summarize resampled seeds, drawn row by row and within a row workload by workload."""
    generator = np.random.default_rng(seed)
    counts = [table.shape[1] for table in tables]
    bounds, ends = np.repeat(counts, counts), np.cumsum(counts)[:-1]
    found: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
    for start in range(0, resamples, _CHUNK):
        rows = min(_CHUNK, resamples - start)
        drawn = np.split(generator.integers(bounds, size=(rows, len(bounds))), ends, axis=1)
        found.append(_summaries([t[:, d] for t, d in zip(tables, drawn, strict=True)]))
    means, shares = (np.concatenate(part, axis=1).T for part in zip(*found, strict=True))
    return means, shares


def _over_workloads(
    tables: Sequence[NDArray[np.float64]], resamples: int, seed: int
) -> NDArray[np.float64]:
    # A generator of its own: one interval must not depend on whether the other is computed.
    generator = np.random.default_rng([seed, 1])
    draws = generator.integers(len(tables), size=(resamples, len(tables)))
    # Few workloads have few different draws.
    found: dict[tuple[int, ...], NDArray[np.float64]] = {}
    for draw in map(tuple, np.sort(draws, axis=1).tolist()):
        if draw not in found:
            found[draw] = _summaries([tables[index] for index in draw])[0]
    return np.array([found[tuple(draw)] for draw in np.sort(draws, axis=1).tolist()])


def _design(
    by_workload: Mapping[str, Mapping[int, float]],
) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((name, tuple(sorted(seeds))) for name, seeds in sorted(by_workload.items()))


def _summaries(
    tables: Sequence[NDArray[np.float64]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return both summaries; seeds are the last axis, optimizers the first."""
    joined = np.sort(np.concatenate(tables, axis=-1), axis=-1)
    cut = joined.shape[-1] // 4
    means = _mean(joined[..., cut : joined.shape[-1] - cut])
    better = [np.mean((table < 0) + 0.5 * (table == 0), axis=-1) for table in tables]
    return means, np.mean(better, axis=0)


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    # inf and -inf together have no mean: the optimizer both rescued and lost runs.
    with np.errstate(invalid="ignore"):
        return np.mean(values, axis=-1)


def _interval(value: float, draws: NDArray[np.float64], tail: float) -> Interval:
    # Order statistics instead of interpolation: interpolating between infinities gives NaN.
    ordered = np.sort(np.nan_to_num(draws, nan=math.inf, posinf=math.inf, neginf=-math.inf))
    low, high = (np.quantile(ordered, q, method="inverted_cdf") for q in (tail, 1 - tail))
    return Interval(value, float(low), float(high))
