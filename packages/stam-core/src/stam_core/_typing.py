"""The names the rules are typed with: any array, any namespace of the Python array API."""

from collections.abc import Callable
from typing import Any, TypeAlias

Array: TypeAlias = Any
"""An array of the namespace in use (NumPy, jax.numpy, array-api-strict, torch)."""

Namespace: TypeAlias = Any
"""A module that follows the Python array API standard, 2024.12 or later."""

Scalar: TypeAlias = Any
"""A Python number, or a 0-d array of the namespace (a tracer under ``jax.jit``)."""

Mean: TypeAlias = Callable[[Array], Array]
"""A mean over a tensor: local, across devices, or keeping some axes (then with size-1 dims)."""
