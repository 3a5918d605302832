"""What a search of k trials would have found: how cheap an optimizer is to tune.

From n trials with scores s_1 <= ... <= s_n, k are drawn without replacement; the best of them is
s_i with probability

    P(best = s_i) = C(n - i, k - 1) / C(n, k),        i = 1, ..., n - k + 1.

The curve over k is exact for the trials that ran, not an estimate from resampling. It describes a
random search over the same grid, and says nothing about trials outside it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class BestOf:
    """The best score of k random trials.

    Args:
        expected: its mean; inf while k diverged trials could be drawn, else -inf where a score of
            -inf could be.
        low: its lower quartile.
        high: its upper quartile.
    """

    expected: float
    low: float
    high: float


def best_of(scores: Sequence[float]) -> list[BestOf]:
    """Return the distribution of the best of k trials for k = 1, ..., n.

    Args:
        scores: one per trial, lower is better, inf for a diverged one and -inf for a loss of 0.

    Raises:
        ValueError: there is no score, or one is NaN.

    Example:
        >>> [found.expected for found in best_of([3.0, 1.0, 2.0])]
        [2.0, 1.3333, 1.0]
        >>> [found.expected for found in best_of([3.0, math.inf])]
        [inf, 3.0]
    """
    if not scores or any(math.isnan(score) for score in scores):
        raise ValueError("a search curve needs at least one score and no NaN; drop failed trials")
    ordered, n = sorted(scores), len(scores)
    curve: list[BestOf] = []
    for k in range(1, n + 1):
        weights = [math.comb(n - i, k - 1) / math.comb(n, k) for i in range(1, n - k + 2)]
        drawn = ordered[: len(weights)]
        # Never the sum of -inf and inf, which would be no number.
        infinite = drawn[-1] if drawn[-1] == math.inf else drawn[0]
        expected = (
            infinite
            if math.isinf(infinite)
            else math.fsum(w * s for w, s in zip(weights, drawn, strict=True))
        )
        curve.append(
            BestOf(expected, _quantile(ordered, weights, 0.25), _quantile(ordered, weights, 0.75))
        )
    return curve


def _quantile(ordered: Sequence[float], weights: Sequence[float], share: float) -> float:
    total = 0.0
    for score, weight in zip(ordered, weights, strict=False):
        total += weight
        # The weights are exact fractions that floats round.
        if total >= share - 1e-12:
            return score
    return ordered[len(weights) - 1]
