"""Steps to a target, and the Dolan-Moré profile over problems.

For solvers s and problems p with cost t[p, s] (inf for a miss), r[p, s] = t[p, s] / min_s t[p, s]
and the profile is rho_s(tau) = share of problems with r[p, s] <= tau. A profile depends on which
solvers take part, so it never stands alone in the report.
"""

import itertools
import math
from collections.abc import Mapping, Sequence


def steps_to_target(
    steps: Sequence[float | None], losses: Sequence[float | None], target: float
) -> float:
    """Return the first step from which two evaluations in a row are at or below the target.

    Args:
        steps: step of each evaluation, ascending.
        losses: validation loss there, None where it was not finite.
        target: the loss to reach, fixed by the workload before any run.

    Returns:
        The step of the first of the two evaluations, or inf if the run never gets there.

    Example:
        >>> steps_to_target([10, 20, 30, 40], [0.9, 0.4, 0.6, 0.5], target=0.5)
        inf
        >>> steps_to_target([10, 20, 30, 40], [0.9, 0.6, 0.5, 0.4], target=0.5)
        30.0
    """
    reached = [loss is not None and loss <= target for loss in losses]
    for index in range(len(reached) - 1):
        step = steps[index]
        if reached[index] and reached[index + 1] and step is not None:
            return float(step)
    return math.inf


def performance_profile(
    costs: Mapping[str, Sequence[float]], ratios: Sequence[float]
) -> dict[str, list[float]]:
    """Return the Dolan-Moré profile of each solver at the given ratios.

    Args:
        costs: solver -> cost per problem, the same problems in the same order; inf is a miss.
        ratios: ascending, at least 1.

    Returns:
        Solver -> share of problems within each ratio of the best solver on that problem. A
        problem that no solver solves counts against all of them.

    Raises:
        ValueError: solvers have different numbers of problems, or none, or a cost is NaN or not
            above 0.

    Example:
        >>> profile = performance_profile({"a": [10, 30], "b": [20, math.inf]}, [1.0, 2.0])
        >>> profile["a"], profile["b"]
        ([1.0, 1.0], [0.0, 0.5])
    """
    sizes = {len(values) for values in costs.values()}
    if len(sizes) != 1 or sizes == {0}:
        raise ValueError(f"a profile needs the same problems for every solver; got {sorted(sizes)}")
    for values in costs.values():
        if bad := [value for value in values if not value > 0]:
            raise ValueError(f"cost is {bad[0]}; costs are above 0, inf for a miss")
    problems = sizes.pop()
    best = [min(values[p] for values in costs.values()) for p in range(problems)]
    profile: dict[str, list[float]] = {}
    for solver, values in costs.items():
        shares = [math.inf if math.isinf(v) else v / b for v, b in zip(values, best, strict=True)]
        profile[solver] = [sum(s <= ratio for s in shares) / problems for ratio in ratios]
    return profile


def profile_area(ratios: Sequence[float], shares: Sequence[float]) -> float:
    """Return the area under a profile between its first and last ratio, as a share of all of it.

    The profile is a step function: between two ratios it keeps the value of the lower one.

    Args:
        ratios: ascending, at least two.
        shares: the profile there.

    Raises:
        ValueError: there are fewer than two ratios, or they are not ascending.

    Example:
        >>> profile_area([1.0, 2.0, 4.0], [0.0, 0.5, 1.0])
        0.3333
    """
    widths = [b - a for a, b in itertools.pairwise(ratios)]
    if not widths or min(widths) <= 0:
        raise ValueError(f"ratios are {list(ratios)}; an area needs two or more, ascending")
    return math.fsum(w * s for w, s in zip(widths, shares, strict=False)) / math.fsum(widths)
