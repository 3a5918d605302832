"""Learning-rate schedules, as plain numbers per step, the same in both frameworks."""

import math
from collections.abc import Callable

from optim_bench.tasks import TaskError

WARMUP, DECAY = 0.05, 0.2

Schedule = str | Callable[[int, int], float]


def multipliers(schedule: Schedule, steps: int) -> list[float]:
    """Return the factor on the learning rate for each of `steps` steps.

    "constant" is 1 throughout. All others begin with a linear warm-up, factor (t+1)/w, over
    w = max(1, round(0.05 T)) steps, and go on as

        cosine    (1 + cos(pi (t-w)/(T-w)))/2
        linear    1 - (t-w)/(T-w)
        warmup    1
        wsd       1, and over the last d = max(1, round(0.2 T)) steps (T-t)/d

    Args:
        schedule: one of these names, or a function from (step, steps), the step counted from 0, to
            a finite factor that is not negative.
        steps: T.

    Raises:
        ValueError: the schedule is none of these.
        TaskError: a function gives something else.

    Example:
        >>> [round(m, 3) for m in multipliers("cosine", 40)[::8]]
        [0.5, 0.94, 0.701, 0.377, 0.105]
        >>> [round(m, 3) for m in multipliers("wsd", 40)[::8]], multipliers(lambda t, T: 0.5, 1)
        ([0.5, 1.0, 1.0, 1.0, 1.0], [0.5])
    """
    if callable(schedule):
        return [_checked(schedule(step, steps), step) for step in range(steps)]
    if schedule == "constant":
        return [1.0] * steps
    warmup = max(1, round(WARMUP * steps))
    length = steps - warmup
    rising = [(t + 1) / warmup for t in range(min(warmup, steps))]
    if schedule == "cosine":
        return rising + [0.5 * (1 + math.cos(math.pi * t / length)) for t in range(length)]
    if schedule == "linear":
        return rising + [1 - t / length for t in range(length)]
    if schedule == "warmup":
        return rising + [1.0] * length
    if schedule == "wsd":
        decay = max(1, round(DECAY * steps))
        return rising + [min(1.0, (steps - t) / decay) for t in range(warmup, steps)]
    raise ValueError(
        f"schedule is {schedule!r}; it has to be one of cosine, constant, linear, warmup, wsd, or "
        "a function"
    )


def _checked(value: object, step: int) -> float:
    if isinstance(value, int | float) and math.isfinite(value) and value >= 0:
        return float(value)
    raise TaskError(
        f"schedule returned {value!r} at step {step}; it has to be a finite factor, at least 0"
    )
