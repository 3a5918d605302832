"""What the benchmark knows about an optimizer without importing its framework."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from optim_bench.references import import_object

Value = float | int | str | bool | None


@dataclass(frozen=True)
class Parameter:
    """The default and the declared range of one hyperparameter.

    Args:
        default: used when a run does not say otherwise; its type is the hyperparameter's type.
        low: smallest allowed number, or `None`.
        high: largest allowed number, or `None`.
        low_open: whether `low` itself is refused.
        high_open: whether `high` itself is refused.
        choices: the allowed values of a hyperparameter that is not a number.
        optional: whether it is passed on only when a run gives it, and otherwise left to the
            optimizer, whose own default `default` then names. What was added to an optimizer later
            is optional, because every hyperparameter of a run is part of its key in the store.
    """

    default: Value
    low: float | None = None
    high: float | None = None
    low_open: bool = False
    high_open: bool = False
    choices: tuple[Value, ...] = ()
    optional: bool = False

    def range(self) -> str:
        """Return the range as people write it.

        Example:
            >>> Parameter(0.9, 0.0, 1.0, high_open=True).range()
            '[0, 1)'
            >>> Parameter(0.01, 0.0).range()
            '[0, inf)'
        """
        if self.choices:
            return "one of " + ", ".join(repr(choice) for choice in self.choices)
        left = "(-inf" if self.low is None else f"{'(' if self.low_open else '['}{self.low:g}"
        right = "inf)" if self.high is None else f"{self.high:g}{')' if self.high_open else ']'}"
        return f"{left}, {right}"

    def problem(self, value: Value) -> str | None:
        """Return what is wrong with a value, or `None`."""
        if self.choices:
            known = any(value == c and type(value) is type(c) for c in self.choices)
            return None if known else f"has to be {self.range()}"
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"has to be a number in {self.range()}"
        if isinstance(self.default, int) and not isinstance(value, int):
            return f"has to be a whole number in {self.range()}"
        below = self.low is not None and (value < self.low or (self.low_open and value == self.low))
        above = self.high is not None and (
            value > self.high or (self.high_open and value == self.high)
        )
        if below or above or not math.isfinite(value):
            return f"has to lie in {self.range()}"
        return None


def learning_rate(default: float) -> Parameter:
    """Declare a learning rate: positive, with the centre of the tuning grid as default."""
    return Parameter(default, 0.0, low_open=True)


def decay(default: float) -> Parameter:
    """Declare a moment's decay rate, in [0, 1)."""
    return Parameter(default, 0.0, 1.0, high_open=True)


def open_unit(default: float) -> Parameter:
    """Declare a number in (0, 1)."""
    return Parameter(default, 0.0, 1.0, low_open=True, high_open=True)


def non_negative(default: float) -> Parameter:
    """Declare a number in [0, inf), such as a weight decay."""
    return Parameter(default, 0.0)


def positive(default: float) -> Parameter:
    """Declare a number in (0, inf), such as an epsilon."""
    return Parameter(default, 0.0, low_open=True)


@dataclass(frozen=True)
class OptimizerInfo:
    """An optimizer as the benchmark runs it.

    Args:
        name: registry name within its framework.
        framework: `"jax"` or `"torch"`.
        title: one line for people.
        family: `"ours"`, `"baseline"`, `"ablation"` or `"third-party"`.
        factory: `"module:function"`, imported when first used, or the function itself. In JAX it
            takes the hyperparameters as keywords (`learning_rate` may be a traced scalar) and
            returns an optax transformation; in PyTorch it takes the module and the hyperparameters
            and returns a `torch.optim.Optimizer`, whose `group["lr"]` the benchmark then sets
            before every step. A class of these with an argument `lr` is given the parameters, and
            the learning rate by that name.
        parameters: declared hyperparameters; `learning_rate` is always one, its default is the
            centre of the tuning grid.
        schedule: a schedule that the optimizer demands whatever the workload says, or `None`.
        evaluation: in JAX, `"module:function"` from `(state, params)` to the parameters to judge,
            for optimizers that average; `None` judges the parameters themselves.
        requires: distribution to install beside the framework, or `None`.
        open_parameters: whether hyperparameters that are not declared are passed on unchecked
            (ad-hoc factories).

    Example:
        >>> info = OptimizerInfo(
        ...     "sgd", "jax", "SGD", "baseline", "optax:sgd", {"learning_rate": learning_rate(0.1)}
        ... )
        >>> info.validate({"learning_rate": -1.0})
        Traceback (most recent call last):
        ...
        ValueError: jax/sgd: learning_rate is -1.0; it has to lie in (0, inf)
    """

    name: str
    framework: str
    title: str
    family: str
    factory: str | Callable[..., Any]
    parameters: Mapping[str, Parameter]
    schedule: str | None = None
    evaluation: str | None = None
    requires: str | None = None
    open_parameters: bool = False
    defaults: Mapping[str, Value] = field(init=False)

    def __post_init__(self) -> None:
        if "learning_rate" not in self.parameters:
            raise ValueError(f"{self.key}: parameters need a 'learning_rate'")
        defaults = {name: p.default for name, p in self.parameters.items() if not p.optional}
        object.__setattr__(self, "defaults", MappingProxyType(defaults))
        self.validate({})

    @property
    def key(self) -> str:
        """`framework/name`, the key in the registry."""
        return f"{self.framework}/{self.name}"

    @property
    def learning_rate(self) -> float:
        """Centre of the tuning grid."""
        value = self.defaults["learning_rate"]
        assert isinstance(value, int | float)  # noqa: S101 - __post_init__ validated it
        return float(value)

    def validate(self, hyperparameters: Mapping[str, Value]) -> dict[str, Value]:
        """Return the hyperparameters completed with the defaults.

        Raises:
            ValueError: one is unknown or out of range; one line names it, its value and the range.
        """
        for name, value in hyperparameters.items():
            if name not in self.parameters:
                if self.open_parameters:
                    continue
                known = ", ".join(self.parameters)
                raise ValueError(f"{self.key}: no hyperparameter named {name!r}; it takes {known}")
            problem = self.parameters[name].problem(value)
            if problem is not None:
                raise ValueError(f"{self.key}: {name} is {value!r}; it {problem}")
        merged = {**self.defaults, **hyperparameters}
        # 1 and 1.0 mean the same run, so they must have the same key in the store.
        merged = {
            name: float(value)
            if isinstance(self.defaults.get(name), float) and isinstance(value, int)
            else value
            for name, value in merged.items()
        }
        for name, value in self.defaults.items():
            problem = self.parameters[name].problem(value)
            if problem is not None:
                raise ValueError(f"{self.key}: the default {name}={value!r} {problem}")
        return merged

    def load_factory(self) -> Callable[..., Any]:
        """Import and return the factory."""
        return self.factory if callable(self.factory) else import_object(self.factory)
