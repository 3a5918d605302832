"""Hyperparameters under tracing: which are constants of the program, which are values in it.

Python numbers become constants, so that 1 - b2 is rounded once, from the exact number; arrays
(tracers of ``optax.inject_hyperparams`` or of a ``vmap`` over settings) become arguments, so that a
new value needs no compilation.
"""

from dataclasses import fields, replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

H = TypeVar("H")

DECAYS = ("b1_base", "b1", "b2", "tau_decay", "moment_decay", "sign_momentum")


def is_dynamic(value: Any) -> bool:
    """Tell whether ``value`` is an array rather than a Python number, string or None."""
    return isinstance(value, jax.Array) or (
        hasattr(value, "dtype") and not isinstance(value, float | int)
    )


def split(hyperparams: Any) -> tuple[tuple[tuple[str, Any], ...], dict[str, Any]]:
    """Return the constants as a hashable tuple of pairs, and the arrays by name."""
    items = {field.name: getattr(hyperparams, field.name) for field in fields(hyperparams)}
    dynamic = {name: value for name, value in items.items() if is_dynamic(value)}
    return tuple((name, value) for name, value in items.items() if name not in dynamic), dynamic


def join(
    kind: type[H], static: tuple[tuple[str, Any], ...], dynamic: dict[str, Any], dtype: Any
) -> H:
    """Return the hyperparameters again, the arrays among them in ``dtype``."""
    integers = {field.name for field in fields(kind) if field.metadata["is_integer"]}  # type: ignore[arg-type]
    arrays = {
        name: jnp.asarray(value, jnp.int32 if name in integers else dtype)
        for name, value in dynamic.items()
    }
    return kind(**dict(static), **arrays)


def at_step(hyperparams: H, count: Any) -> H:
    """Return the hyperparameters with ``adapt_strength`` evaluated where it is a schedule.

    The learning rate and the weight decay are applied by their own transformations, so they are
    dropped here.
    """
    adapt_strength = hyperparams.adapt_strength  # type: ignore[attr-defined]
    value = adapt_strength(count) if callable(adapt_strength) else adapt_strength
    return replace(hyperparams, adapt_strength=value, learning_rate=1.0, weight_decay=0.0)  # type: ignore[type-var]


def check_decay_precision(hyperparams: Any) -> None:
    """Raise if a decay arrived in a 16-bit dtype, where 0.999 is 1.

    Raises:
        TypeError: It did; the message names the remedy.
    """
    for name in DECAYS:
        value: Any = getattr(hyperparams, name, 0.0)
        if is_dynamic(value) and jnp.finfo(value.dtype).bits < 32:
            msg = (
                f"{name} was given as a {jnp.dtype(value.dtype).name} array, which cannot hold a "
                "decay close to 1 (bfloat16 rounds 0.999 to 1.0): pass a Python number or "
                "float32; with optax.inject_hyperparams on 16-bit parameters, pass "
                "hyperparam_dtype=jnp.float32"
            )
            raise TypeError(msg)


def check_static(name: str, value: Any) -> None:
    """Raise if a setting that shapes the program arrived as an array.

    Raises:
        TypeError: It did; the message names the remedy.
    """
    if is_dynamic(value):
        msg = (
            f"{name} must be a Python int or None, got an array: it shapes the compiled program; "
            f"with optax.inject_hyperparams, pass static_args=({name!r},)"
        )
        raise TypeError(msg)
