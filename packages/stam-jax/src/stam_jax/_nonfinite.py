"""What an optimizer does about NaN and infinite gradients."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from stam_core import zero_nonfinite

from stam_jax._means import AxisName, spread_over

POLICIES = ("propagate", "zero", "skip")


def apply_policy(
    policy: str, inner: optax.GradientTransformationExtraArgs, axis_name: AxisName | None
) -> optax.GradientTransformationExtraArgs:
    """Wrap a whole optimizer in a policy; none of them changes the state's structure.

    Args:
        policy: "propagate" hands gradients on as they are. "zero" replaces non-finite entries by 0
            before anything else sees them. "skip" leaves a step out altogether if any entry of any
            leaf is not finite: updates are 0 (weight decay included), and all state and counts stay
            as they were.
        inner: The optimizer.
        axis_name: Mapped axes over which gradients are spread, for "skip" to agree on.

    Raises:
        ValueError: The policy is unknown.
    """
    if policy not in POLICIES:
        msg = f"nonfinite must be 'propagate', 'zero' or 'skip', got {policy!r}"
        raise ValueError(msg)
    if policy == "propagate":
        return inner

    def update_zeroed(
        updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, Any]:
        updates = jax.tree.map(lambda g: zero_nonfinite(jnp.asarray(g), xp=jnp), updates)
        return inner.update(updates, state, params, **extra)

    def update_or_skip(
        updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, Any]:
        finite = jnp.asarray(True)
        for g in jax.tree.leaves(updates):
            finite = jnp.logical_and(finite, jnp.all(jnp.isfinite(g)))
        if axis_name is not None:
            finite = lax.psum(jnp.where(finite, 0, 1), spread_over(finite, axis_name)) == 0
        new_updates, new_state = inner.update(updates, state, params, **extra)
        new_updates = jax.tree.map(lambda u: jnp.where(finite, u, jnp.zeros_like(u)), new_updates)
        new_state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new_state, state)
        return new_updates, new_state

    update = update_zeroed if policy == "zero" else update_or_skip
    return optax.GradientTransformationExtraArgs(inner.init, update)
