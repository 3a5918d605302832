"""Learning-rate schedules, as plain numbers per step, the same in both frameworks."""

import math


def multipliers(schedule: str, steps: int) -> list[float]:
    """Return the factor on the learning rate for each of `steps` steps.

    "cosine" is a linear warmup over w = max(1, round(0.05 T)) steps, factor (t+1)/w, then
    (1 + cos(pi (t-w)/(T-w)))/2 towards 0; "constant" is 1 throughout.

    Raises:
        ValueError: the schedule is neither.

    Example:
        >>> [round(m, 3) for m in multipliers("cosine", 40)[::8]]
        [0.5, 0.94, 0.701, 0.377, 0.105]
    """
    if schedule == "constant":
        return [1.0] * steps
    if schedule != "cosine":
        raise ValueError(f"schedule is {schedule!r}; it has to be 'cosine' or 'constant'")
    warmup = max(1, round(0.05 * steps))
    rising = [(t + 1) / warmup for t in range(min(warmup, steps))]
    length = steps - warmup
    falling = [0.5 * (1 + math.cos(math.pi * t / length)) for t in range(length)]
    return rising + falling
