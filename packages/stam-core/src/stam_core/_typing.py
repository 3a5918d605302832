"""The names the rules are typed with: any array, any namespace of the Python array API."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

Array: TypeAlias = Any
"""An array of the namespace in use (NumPy, jax.numpy, array-api-strict, torch)."""

Namespace: TypeAlias = Any
"""A module that follows the Python array API standard, 2024.12 or later."""

Scalar: TypeAlias = Any
"""A Python number, or a 0-d array of the namespace (a tracer under ``jax.jit``)."""

Mean: TypeAlias = Callable[[Array], Array]
"""A mean over a tensor: local, across devices, or keeping some axes (then with size-1 dims)."""


class Exact(NamedTuple):
    """How to keep operations that IEEE 754 rounds correctly what they are, under a compiler.

    Attributes:
        keep: Returns its argument, so that no compiler merges the operation that made it with the
            next one.
        divide: Returns the quotient of two arrays of one shape, correctly rounded.
    """

    keep: Callable[[Array], Array]
    divide: Callable[[Array, Array], Array]


def _keep(x: Array) -> Array:
    return x


def _divide(x: Array, y: Array) -> Array:
    return x / y


AS_WRITTEN = Exact(_keep, _divide)
"""For namespaces that round each operation by itself, as NumPy does."""
