"""What an optimizer does about NaN and infinite gradients."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from stam_core import zero_nonfinite

from stam_jax._dtypes import compute_dtype
from stam_jax._means import AxisName, spread_over
from stam_jax._tree import check_floating

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
        inner: The optimizer: lifted rules, and transformations whose states are counts.
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
        check_floating(updates, "gradient")
        updates = jax.tree.map(lambda g: zero_nonfinite(jnp.asarray(g), xp=jnp), updates)
        return inner.update(updates, state, params, **extra)

    def update_or_skip(
        updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, Any]:
        check_floating(updates, "gradient")
        taken = _all_finite(updates)
        if axis_name is not None:
            taken = lax.psum(jnp.where(taken, 0, 1), spread_over(taken, axis_name)) == 0
        new_updates, new_state = inner.update(updates, state, params, taken=taken, **extra)
        new_updates = jax.tree.map(lambda u: jnp.where(taken, u, jnp.zeros_like(u)), new_updates)
        # A lifted rule has left its own state; what remains are the counts of schedules.
        new_state = jax.tree.map(
            lambda new, old: jnp.where(taken, new, old) if jnp.ndim(new) == 0 else new,
            new_state,
            state,
        )
        return new_updates, new_state

    update = update_zeroed if policy == "zero" else update_or_skip
    return optax.GradientTransformationExtraArgs(inner.init, update)


def _all_finite(tree: Any) -> jax.Array:
    """Tell whether every entry is finite.

    XLA's CPU compiler stores one truth value per entry before it reduces them, which takes twice as
    long as a sum. A sum is not finite where an entry is not; it may also overflow, and only then
    does a CPU look at every entry.
    """
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    if not leaves:
        return jnp.asarray(True)

    def each(*leaves: jax.Array) -> jax.Array:
        # One reduction: a chain of conjunctions would become part of every loop that reads its end.
        return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in leaves]))

    def by_sums(*leaves: jax.Array) -> jax.Array:
        sums = [jnp.sum(x, dtype=compute_dtype(x.dtype)) for x in leaves]
        finite = jnp.all(jnp.stack([jnp.isfinite(x) for x in sums]))
        return lax.cond(
            finite, lambda finite, *_: finite, lambda _, *leaves: each(*leaves), finite, *leaves
        )

    return lax.platform_dependent(*leaves, cpu=by_sums, default=each)
