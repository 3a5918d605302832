"""Hyperparameters under tracing: which are constants of the program, which are values in it.

Python numbers become constants, so that 1 - b2 is rounded once, from the exact number; arrays
(tracers of ``optax.inject_hyperparams`` or of a ``vmap`` over settings) become arguments, so that a
new value needs no compilation.
"""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from stam_core import Hyperparams

H = TypeVar("H", bound=Hyperparams)

Static: TypeAlias = tuple[tuple[str, Any], ...]
"""The constants of a program, hashable."""


def is_dynamic(value: Any) -> bool:
    """Tell whether ``value`` is an array rather than a Python number, string or None."""
    return isinstance(value, jax.Array) or (
        hasattr(value, "dtype") and not isinstance(value, float | int)
    )


def checked(kind: type[H], values: Mapping[str, Any]) -> H:
    """Return hyperparameters, checked by what their fields declare, and for what tracing needs.

    Raises:
        ValueError: A number is out of range.
        TypeError: A value is not a number, a setting that shapes the program arrived as an array,
            or a decay in a 16-bit dtype, where 0.999 is 1.
    """
    for field in fields(kind):
        if field.metadata["is_integer"] and field.default is None:
            _check_static(field.name, values.get(field.name))
    hyperparams = kind(**values)
    for field in fields(kind):
        allowed = field.metadata["range"]
        if allowed is not None and allowed.high == 1.0:
            _check_decay_precision(field.name, getattr(hyperparams, field.name))
    return hyperparams


def split(hyperparams: Hyperparams) -> tuple[Static, dict[str, Any]]:
    """Return the constants as a hashable tuple of pairs, and the arrays by name."""
    items = {field.name: getattr(hyperparams, field.name) for field in fields(hyperparams)}
    dynamic = {name: value for name, value in items.items() if is_dynamic(value)}
    return tuple((name, value) for name, value in items.items() if name not in dynamic), dynamic


def join(kind: type[H], static: Static, dynamic: Mapping[str, Any], dtype: Any) -> H:
    """Return the hyperparameters again, the arrays among them in ``dtype``; integers stay so."""
    integers = {field.name for field in fields(kind) if field.metadata["is_integer"]}
    arrays = {
        name: jnp.asarray(value, jnp.int32 if name in integers else dtype)
        for name, value in dynamic.items()
    }
    return kind(**dict(static), **arrays)


def at_step(hyperparams: H, count: Any) -> H:
    """Return the hyperparameters with every schedule evaluated at ``count``."""
    values = ((field.name, getattr(hyperparams, field.name)) for field in fields(hyperparams))
    return replace(hyperparams, **{name: f(count) for name, f in values if callable(f)})


def _check_decay_precision(name: str, value: Any) -> None:
    if is_dynamic(value) and jnp.finfo(value.dtype).bits < 32:
        msg = (
            f"{name} was given as a {jnp.dtype(value.dtype).name} array, which cannot hold a "
            "decay close to 1 (bfloat16 rounds 0.999 to 1.0): pass a Python number or "
            "float32; with optax.inject_hyperparams on 16-bit parameters, pass "
            "hyperparam_dtype=jnp.float32"
        )
        raise TypeError(msg)


def _check_static(name: str, value: Any) -> None:
    if is_dynamic(value):
        msg = (
            f"{name} must be a Python int or None, got an array: it shapes the compiled program; "
            f"with optax.inject_hyperparams, pass static_args=({name!r},)"
        )
        raise TypeError(msg)
