"""The AdamW section of STAC, with the arithmetic of ``stam_core`` (equations 3 to 5 of ``_stac``).

Differs from ``optax.scale_by_adam`` in what PyTorch does otherwise:
1. moments are computed in float32 at least, whatever they are stored in;
2. amsgrad keeps the running maximum of nu, not of nu corrected for its bias;
3. the real and the imaginary part of a complex entry are two entries.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from stam_core import ADAMW, STACHyperparams

from stam_jax import _dtypes, _hyperparams, _tree


def adamw_section(
    hyperparams: STACHyperparams, *, state_dtype: Any, wide: bool
) -> optax.GradientTransformationExtraArgs:
    """Rescale gradients as AdamW does, without learning rate, sign or decay.

    Args:
        hyperparams: b1, b2, eps, amsgrad and maximize of them are used.
        state_dtype: Storage of the moments; None for the parameter's dtype.
        wide: Return the direction in the dtype of the arithmetic, and not in the gradient's.

    Returns:
        The transformation; its state is optax's ``ScaleByAdamState`` or ``ScaleByAmsgradState``.
    """
    _hyperparams.check_decay_precision(hyperparams)
    requested = _dtypes.canonical_float("adamw_state_dtype", state_dtype)

    def init(params: Any) -> Any:
        _tree.check_floating(params, "parameter")
        zeros = functools.partial(_dtypes.first_moments, params, requested)
        count = jnp.zeros([], jnp.int32)
        if hyperparams.amsgrad:
            return optax.ScaleByAmsgradState(count, zeros(), zeros(), zeros())
        return optax.ScaleByAdamState(count, zeros(), zeros())

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        _tree.check_floating(updates, "gradient")
        grads, treedef = jax.tree.flatten(updates)
        grads = [jnp.asarray(g) for g in grads]
        columns = [
            _tree.flatten_like(treedef, grads, slot, "the optimizer state") for slot in state[1:]
        ]
        count = jnp.asarray(optax.safe_increment(state.count))
        static, dynamic = _hyperparams.split(hyperparams)
        leaves = [
            _update_leaf(g, moments, count, dynamic, static, wide)
            for g, *moments in zip(grads, *columns, strict=True)
        ]
        directions, *slots = zip(*leaves, strict=True) if leaves else ((),) * (1 + len(columns))
        new_slots = (treedef.unflatten(slot) for slot in slots)
        return treedef.unflatten(directions), type(state)(count, *new_slots)

    return optax.GradientTransformationExtraArgs(init, update)  # type: ignore[arg-type]


@functools.partial(jax.jit, static_argnames=("static", "wide"))
def _update_leaf(
    g: jax.Array,
    moments: list[jax.Array],
    count: jax.Array,
    dynamic: dict[str, Any],
    static: tuple[tuple[str, Any], ...],
    wide: bool,
) -> tuple[jax.Array, ...]:
    """Return direction and moments of one leaf."""
    dtype = _dtypes.compute_dtype(g.dtype)
    hp = _hyperparams.join(STACHyperparams, static, dynamic, _dtypes.real_dtype(dtype))
    pairs = _dtypes.is_complex(dtype)

    def parts(x: jax.Array) -> jax.Array:
        x = x.astype(dtype)
        return jnp.stack([x.real, x.imag]) if pairs else x

    def whole(x: jax.Array) -> jax.Array:
        return jax.lax.complex(x[0], x[1]) if pairs else x

    names = [moment.name for moment in ADAMW.moments_of(hp)]
    held = {name: parts(x) for name, x in zip(names, moments, strict=True)}
    d, new = ADAMW.update(ADAMW.prepare(parts(g), hp, xp=jnp), held, {}, count, hp, xp=jnp)
    stored = [
        _dtypes.stored(whole(new[name]), old.dtype)
        for name, old in zip(names, moments, strict=True)
    ]
    return whole(d).astype(dtype if wide else g.dtype), *stored
