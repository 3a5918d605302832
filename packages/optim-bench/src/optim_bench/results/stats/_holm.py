"""Holm's step-down correction for a family of tests fixed before any run.

With m p-values sorted upwards, the adjusted i-th (from 0) is the running maximum of
min(1, (m - i) p_i): the chance of even one false alarm in the family stays below the level,
whatever the dependence between the tests.
"""

from collections.abc import Sequence


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the adjusted p-values in the order given.

    Raises:
        ValueError: a p-value is outside [0, 1].

    Example:
        >>> holm([0.04, 0.01, 0.03])
        [0.06, 0.03, 0.06]
    """
    for value in p_values:
        if not 0 <= value <= 1:
            raise ValueError(f"p-value is {value}; it has to be in [0, 1]")
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for position, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - position) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def reachable(smallest: Sequence[float], alpha: float) -> list[bool]:
    """Say for each test of a family whether any outcome at all could reach `alpha`.

    Args:
        smallest: per test, the smallest p-value its number of pairs allows.
        alpha: level of the family.

    Example:
        >>> reachable([2 / 2**6, 2 / 2**10], alpha=0.05), reachable([2 / 2**5], alpha=0.05)
        ([True, True], [False])
    """
    return [value <= alpha for value in holm(smallest)]
