"""Arguments that several functions share, written once.

What a transformation and its optimizer both take stands in a ``TypedDict``, by which a type checker
knows the keywords; defaults stand in the hyperparameters of ``stam_core``. A function decorated
here shows its whole signature, and takes its first arguments by position as well.
"""

import functools
import inspect
from collections.abc import Callable, Iterable
from inspect import Parameter, Signature
from typing import Any, ParamSpec, TypeVar, get_type_hints

from stam_core import Hyperparams

P = ParamSpec("P")
T = TypeVar("T")


def options_of(options: type, hyperparams: Hyperparams, **others: Any) -> list[Parameter]:
    """Return what a ``TypedDict`` lists as parameters.

    Args:
        options: The names and their types.
        hyperparams: Its values are defaults.
        **others: Other defaults; where neither has one, it is None.
    """
    return [
        Parameter(
            name,
            Parameter.KEYWORD_ONLY,
            default=others.get(name, getattr(hyperparams, name, None)),
            annotation=annotation,
        )
        for name, annotation in get_type_hints(options).items()
    ]


def parameters(function: Callable[..., Any]) -> list[Parameter]:
    """Return the parameters that a function shows."""
    return list(Signature.from_callable(function).parameters.values())


def with_arguments(
    *positional: str, shared: Iterable[Parameter]
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Give a function that takes ``**options`` a signature that says what they are.

    Args:
        *positional: Names, in the order in which they may be given by position.
        shared: What the options are, besides the function's own parameters.

    Returns:
        The decorator. The function is called with all its arguments as keywords, defaults included.

    Raises:
        TypeError: A call does not fit the signature; the message begins with the function's name.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        known = {p.name: p for p in (*parameters(function), *shared) if p.kind not in _VARIADIC}
        first = [known.pop(name).replace(kind=_BY_EITHER) for name in positional]
        rest = [p.replace(kind=Parameter.KEYWORD_ONLY) for p in known.values()]
        signature = Signature.from_callable(function).replace(parameters=[*first, *rest])

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                bound = signature.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{signature_name}() {error}") from None
            bound.apply_defaults()
            return function(**bound.arguments)  # type: ignore[call-arg]

        signature_name = call.__name__
        call.__signature__ = signature  # type: ignore[attr-defined]
        return call

    return decorate


_VARIADIC = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
_BY_EITHER = Parameter.POSITIONAL_OR_KEYWORD


def section(function: Callable[..., Any], title: str) -> str:
    """Return a section of a docstring, ``Args`` for example, with its title."""
    lines = (inspect.getdoc(function) or "").splitlines()
    start = lines.index(f"{title}:")
    body = lines[start + 1 :]
    end = next((i for i, line in enumerate(body) if line and not line.startswith(" ")), len(body))
    return "\n".join([lines[start], *body[:end]]).rstrip()
