# pyright: strict
"""The subclasses of dict that come back as what they were: those of the standard library."""

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any, cast

from optim_checkpoint._errors import UnsupportedStateError

CLASSES = ("OrderedDict", "Counter", "defaultdict")
# What a defaultdict may make; anything else would have to be imported by name.
_FACTORIES: dict[str, Callable[[], object] | None] = {
    "None": None,
    **{kind.__name__: kind for kind in (bool, int, float, str, list, tuple, dict, set)},
}


def class_of(
    value: dict[object, object], path: str
) -> tuple[str, str | None, dict[object, object]]:
    """Return the name of a dict's class, its factory's and the attributes it was given.

    The dict of a module's state, for one, has its versions in an attribute.

    Raises:
        UnsupportedStateError: For a class or a factory that is not one of a few.
    """
    kind = type(value)
    attributes = cast("dict[object, object]", getattr(value, "__dict__", {}))
    if kind in (OrderedDict, Counter):
        return kind.__name__, None, attributes
    if kind is defaultdict:
        factory = cast("defaultdict[object, object]", value).default_factory
        for name, known in _FACTORIES.items():
            if factory is known:
                return kind.__name__, name, attributes
        raise UnsupportedStateError(
            path, f"a defaultdict of {factory!r} cannot be stored; convert it to a dict"
        )
    raise UnsupportedStateError(
        path,
        f"a {kind.__module__}.{kind.__qualname__} is a subclass of dict, which would be lost; "
        "convert it to a dict",
    )


def make(
    name: str, factory: object, items: dict[object, object], attributes: dict[object, object]
) -> dict[object, object] | None:
    """Return what `class_of` described, or None if it cannot have described this."""
    if not all(isinstance(key, str) for key in attributes):
        return None
    # Not OrderedDict[Any, Any](): that would leave its parameters in an attribute.
    result: Any
    if name == "defaultdict":
        if not isinstance(factory, str) or factory not in _FACTORIES or attributes:
            return None
        result = cast("Any", defaultdict)(_FACTORIES[factory])
    elif factory is not None:
        return None
    else:
        result = cast("Any", OrderedDict if name == "OrderedDict" else Counter)()
        result.__dict__.update(attributes)
    # Not result.update(): that of a Counter adds numbers.
    for key, item in items.items():
        result[key] = item
    return cast("dict[object, object]", result)
