"""How an optimizer's factory is called, and what to write where that does not fit.

PyTorch    factory(module, learning_rate=..., ...)
Class(module.parameters(), lr=..., ...)     a class of `torch.optim.Optimizer`
JAX        factory(learning_rate=..., ...)
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_FORMS = {
    "jax": (
        "factory(learning_rate)",
        "def mine(learning_rate): return OPTIMIZER(learning_rate)",
    ),
    "torch": (
        "factory(module, learning_rate)",
        "def mine(module, learning_rate): return OPTIMIZER(module.parameters(), lr=learning_rate)",
    ),
}


class FactoryError(ValueError):
    """A factory cannot be called as the benchmark does, or returns something else."""


@dataclass(frozen=True)
class Convention:
    """What a factory calls its arguments.

    Args:
        of_parameters: whether it takes the parameters, as optimizers of PyTorch do, and not the
            module.
        rate: its name of the learning rate.
        default: the learning rate of its signature, or None.
    """

    of_parameters: bool = False
    rate: str = "learning_rate"
    default: float | None = None


def convention(factory: Callable[..., Any]) -> Convention:
    """Return the convention that a factory follows, the benchmark's own unless it is a class.

    Example:
        >>> convention(lambda learning_rate=0.5: None)
        Convention(of_parameters=False, rate='learning_rate', default=0.5)
    """
    parameters = _parameters(factory)
    if _is_torch_class(factory) and "lr" in parameters and "learning_rate" not in parameters:
        of_parameters = next(iter(parameters)) not in ("model", "module")
        return Convention(of_parameters, "lr", _number(parameters["lr"].default))
    rate = parameters.get("learning_rate")
    return Convention(default=None if rate is None else _number(rate.default))


def call_factory(
    name: str,
    framework: str,
    factory: Callable[..., Any],
    settings: Mapping[str, Any],
    *module: Any,
) -> Any:
    """Call a factory.

    Args:
        name: the optimizer in words, for errors.
        framework: `"jax"` or `"torch"`.
        factory: the function or the class.
        settings: hyperparameters, `learning_rate` among them.
        module: in PyTorch, what it is to train.

    Raises:
        FactoryError: its signature does not fit.
    """
    check_call(name, framework, factory, settings)
    known = convention(factory)
    given = (part.parameters() for part in module) if known.of_parameters else module
    return factory(*given, **_named(known, settings))


def check_call(
    name: str, framework: str, factory: Callable[..., Any], settings: Mapping[str, Any]
) -> None:
    """Check that the signature of a factory takes these settings, without a call.

    Raises:
        FactoryError: it does not; the message says what to write.
    """
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # of some callables Python knows no signature
        return
    form, lines = _FORMS[framework]
    known = convention(factory)
    if known.rate != "learning_rate" and known.rate in settings:
        raise FactoryError(f"{name}: {known.rate} is given twice; write learning_rate alone")
    given = (None,) if framework == "torch" else ()
    try:
        signature.bind(*given, **_named(known, settings))
    except TypeError as error:
        raise FactoryError(
            f"{name} cannot be called as {form} with {', '.join(settings)}: {error}; write: {lines}"
        ) from None


def name_of(factory: Any) -> str:
    """Return what a factory is called, a partial by what it completes.

    Example:
        >>> name_of(functools.partial(math_like := sorted, reverse=True))
        'sorted'
    """
    while isinstance(factory, functools.partial) and "__name__" not in vars(factory):
        factory = factory.func
    return getattr(factory, "__name__", type(factory).__name__)


def _named(known: Convention, settings: Mapping[str, Any]) -> dict[str, Any]:
    names = {"learning_rate": known.rate}
    return {names.get(name, name): value for name, value in settings.items()}


def _parameters(factory: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return {}


def _is_torch_class(factory: Any) -> bool:
    """Return whether this is a class of `torch.optim.Optimizer`, without importing PyTorch."""
    while isinstance(factory, functools.partial):
        factory = factory.func
    bases = factory.__mro__ if inspect.isclass(factory) else ()
    return any((b.__module__, b.__name__) == ("torch.optim.optimizer", "Optimizer") for b in bases)


def _number(value: Any) -> float | None:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if plain and 0 < value < float("inf") else None
