"""The points of a search over several hyperparameters, the same for every optimizer.

A scrambled Sobol sequence (Owen's scrambling, one fixed seed) fills the unit box; each optimizer
reads it through its own ranges, and its defaults come first. The points stand in the plan, so that
no version of SciPy can move them between two runs.

A range is what is written beside the name, or it follows from the declaration:

    learning_rate       the width of the grid, half a decade per point, around its centre
    choices             all of them
    decays (to 1)       1 - x log-uniform over a factor of 5 on either side of the default
    low and high        uniform between them
    other positive ones log-uniform over a decade on either side of the default
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optim_bench.errors import UsageError
from optim_bench.optimizers import OptimizerInfo, Parameter
from optim_bench.protocol import Budget, Values
from optim_bench.records import Hyperparameter

RATE = "learning_rate"
_SEED = 0
_DECAY_FACTOR = 5.0
_Range = tuple[float, float] | None


def parse_search(texts: Sequence[str]) -> tuple[str, ...]:
    """Return the hyperparameters to search beside the learning rate, as a budget holds them.

    Args:
        texts: `name`, `name=low:high`, or several of these joined by commas.

    Raises:
        UsageError: one is given twice, or its range is none.

    Example:
        >>> parse_search(["learning_rate,weight_decay=1e-3:0.3", "b1"])
        ('weight_decay=0.001:0.3', 'b1')
    """
    found: dict[str, str] = {}
    for text in ",".join(texts).split(","):
        name, equals, span = text.strip().partition("=")
        if not name or (equals and _range(span) is None):
            raise UsageError(f"search has {text!r}; write name, or name=low:high with low < high")
        if name in found:
            raise UsageError(f"search names {name} twice; leave one of them away")
        if name == RATE and equals:
            raise UsageError(
                f"{RATE} is searched around each optimizer's own centre; write it without a range"
            )
        ends = _range(span) or (0.0, 0.0)
        found[name] = f"{name}={ends[0]:g}:{ends[1]:g}" if equals else name
    found.pop(RATE, None)
    return tuple(found.values())


def points_of(
    info: OptimizerInfo,
    centre: Mapping[str, Hyperparameter],
    span: tuple[float, float],
    budget: Budget,
) -> tuple[Values, ...]:
    """Return the points of an optimizer, its own values first; nothing for a search of the rate.

    What it does not have is not searched; the number of points is the same for all.

    Args:
        info: declares the ranges.
        centre: the values around which is searched.
        span: the smallest and the largest learning rate.
        budget: says what is searched, and how many points there are.

    Raises:
        UsageError: a hyperparameter has no range.
    """
    if not budget.search:
        return ()
    from scipy.stats import qmc

    unit = qmc.Sobol(1 + len(budget.search), rng=_SEED).random(budget.points - 1).tolist()
    low, high = (math.log(end) for end in span)
    axes: dict[str, tuple[int, Callable[[float], Hyperparameter]]] = {
        RATE: (0, lambda u: _rounded(math.exp(low + u * (high - low))))
    }
    for column, text in enumerate(budget.search, start=1):
        name, _, ends = text.partition("=")
        if (parameter := _parameter(info, name)) is not None:
            value = centre.get(name, parameter.default)
            axes[name] = column, _axis(info, name, parameter, value, _range(ends))
    first = {
        name: centre.get(name, p.default)
        for name in axes
        if (p := _parameter(info, name)) is not None
    }
    rest = [{name: read(row[column]) for name, (column, read) in axes.items()} for row in unit]
    return (first, *rest)


def check_search(budget: Budget, infos: Sequence[OptimizerInfo]) -> None:
    """Refuse to search what no optimizer has.

    Raises:
        UsageError: one is named.
    """
    for text in budget.search:
        name = text.partition("=")[0]
        if all(_parameter(info, name) is None for info in infos):
            raise UsageError(
                f"no optimizer here has a hyperparameter named {name!r}; see optim-bench show NAME"
            )


def _parameter(info: OptimizerInfo, name: str) -> Parameter | None:
    """Return what is declared, or what the signature of a plain factory says."""
    if name in info.parameters or not info.open_parameters:
        return info.parameters.get(name)
    try:
        found = inspect.signature(info.load_factory()).parameters
    except (TypeError, ValueError):  # such as a class written in C
        return None
    if name in found:
        default: Any = found[name].default
        return Parameter(default if isinstance(default, (int, float)) else 0.0)
    return Parameter(0.0) if any(p.kind is p.VAR_KEYWORD for p in found.values()) else None


def _axis(
    info: OptimizerInfo, name: str, parameter: Parameter, centre: Hyperparameter, given: _Range
) -> Callable[[float], Hyperparameter]:
    """Return the map from [0, 1) to the values of a hyperparameter."""
    if parameter.choices:
        return lambda u: parameter.choices[int(u * len(parameter.choices))]
    for end in given or ():
        if problem := parameter.problem(round(end) if _whole(parameter) else end):
            raise UsageError(f"search: {info.key}: {name}={end:g} {problem}")
    number = centre if isinstance(centre, (int, float)) and not isinstance(centre, bool) else 0
    if parameter.high == 1 and (given or number >= 0.5):
        ends = given or (1 - min(_DECAY_FACTOR * (1 - number), 1), 1 - (1 - number) / _DECAY_FACTOR)
        if ends[1] < 1:
            far, near = math.log(1 - ends[0]), math.log(1 - ends[1])
            return lambda u: float(f"{1 - _rounded(math.exp(far + u * (near - far))):.6g}")
    if given is None and parameter.low is not None and parameter.high is not None:
        width = parameter.high - parameter.low
        # In from the ends, which may be open.
        low, high = parameter.low + width / 100, parameter.high - width / 100
        return lambda u: _fit(parameter, low + u * (high - low))
    if given is None and number <= 0:
        raise UsageError(
            f"search: {info.key}: {name} is {centre!r} by default, from which no range follows; "
            f"write {name}=low:high"
        )
    low, high = given or (number / 10, number * 10)
    if low > 0:
        start, width = math.log(low), math.log(high / low)
        return lambda u: _fit(parameter, math.exp(start + u * width))
    return lambda u: _fit(parameter, low + u * (high - low))


def _whole(parameter: Parameter) -> bool:
    return isinstance(parameter.default, int) and not isinstance(parameter.default, bool)


def _fit(parameter: Parameter, value: float) -> Hyperparameter:
    if _whole(parameter):
        low = -math.inf if parameter.low is None else parameter.low
        return int(max(round(value), low))
    return _rounded(value)


def _rounded(value: float) -> float:
    """Return three significant digits, so that every machine asks for the same number."""
    return float(f"{value:.3g}")


def _range(text: str) -> _Range:
    low, _, high = text.partition(":")
    try:
        ends = float(low), float(high)
    except ValueError:
        return None
    return ends if -math.inf < ends[0] < ends[1] < math.inf else None
