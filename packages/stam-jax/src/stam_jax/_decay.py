"""Decoupled weight decay that accepts a schedule and masks, and says what is missing."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from stam_jax._dtypes import dtype_of, is_narrow, promote


class DecayState(NamedTuple):
    """State of scheduled weight decay.

    Attributes:
        count: Steps taken, int32 scalar.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride] (optax's name)


def decayed_weights(weight_decay: Any, mask: Any) -> optax.GradientTransformationExtraArgs:
    """Add ``weight_decay * params`` to the updates.

    Differs from ``optax.add_decayed_weights`` in: a schedule works on every supported optax, and a
    decay of exactly 0 needs no parameters.

    Args:
        weight_decay: A number, an array, or a callable of the step count.
        mask: None, or what ``optax.masked`` takes.
    """
    scheduled = callable(weight_decay)

    def init(params: Any) -> Any:
        del params
        return DecayState(jnp.zeros([], jnp.int32)) if scheduled else optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del extra
        if isinstance(weight_decay, int | float) and weight_decay == 0:
            return updates, state
        if params is None:
            msg = (
                f"params are missing, and weight_decay is {weight_decay!r}: call "
                "update(grads, state, params), or set weight_decay=0"
            )
            raise ValueError(msg)
        rate = weight_decay
        if callable(weight_decay):
            rate = weight_decay(state.count)
            state = DecayState(jnp.asarray(optax.safe_increment(state.count)))

        def decayed(u: Any, p: Any) -> Any:
            if u is None:  # Then p may be anything, as in a whole Equinox model.
                return None
            if is_narrow(u.dtype) or is_narrow(dtype_of(p)):
                wide = promote(u.dtype, dtype_of(p))
                return (u.astype(wide) + jnp.asarray(rate, wide) * p.astype(wide)).astype(u.dtype)
            return u + (jnp.asarray(rate).astype(u.dtype) * p).astype(u.dtype)

        return jax.tree.map(decayed, updates, params, is_leaf=lambda u: u is None), state

    inner = optax.GradientTransformationExtraArgs(init, update)
    return inner if mask is None else optax.masked(inner, mask)
