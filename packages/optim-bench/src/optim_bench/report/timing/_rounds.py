"""Rounds of several contenders, interleaved in random order."""

import math
import random
import time
from collections.abc import Callable, Mapping

# Takes so many units of work and waits for the last one.
Run = Callable[[int], None]

ORDER_SEED = 0
WARM_UNITS = 3
# The warm-up knows the speed roughly; a round shall not end up shorter than asked.
MARGIN = 1.2


def interleave(
    runs: Mapping[str, Run],
    rounds: int,
    round_seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Warm every contender, then time rounds of all of them, each time in another order.

    A slow moment of the machine then meets all of them, and the ratio of two contenders within one
    round says more than the ratio of their medians.

    Args:
        runs: label -> what does n units of work and waits once, at the end.
        rounds: how many.
        round_seconds: least duration of one contender's round.
        clock: seconds, ascending.

    Returns:
        Label -> seconds per unit of each round.

    Example:
        >>> ticks = iter(range(100))
        >>> interleave({"a": lambda n: None}, 2, 0.05, clock=lambda: next(ticks))
        {'a': [1.0, 1.0]}
    """
    units: dict[str, int] = {}
    for label, run in runs.items():
        run(WARM_UNITS)
        started = clock()
        run(WARM_UNITS)
        per_unit = (clock() - started) / WARM_UNITS
        units[label] = max(1, math.ceil(MARGIN * round_seconds / per_unit))
    order = list(runs)
    shuffle = random.Random(ORDER_SEED).shuffle  # noqa: S311 - an order, not a secret
    seconds: dict[str, list[float]] = {label: [] for label in runs}
    for _ in range(rounds):
        shuffle(order)
        for label in order:
            started = clock()
            runs[label](units[label])
            seconds[label].append((clock() - started) / units[label])
    return seconds
