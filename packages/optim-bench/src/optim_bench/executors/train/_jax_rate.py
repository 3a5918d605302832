"""Optimizers whose state holds the learning rate, as `optax.inject_hyperparams` makes them.

A program is compiled once for every rate of a schedule: it builds the optimizer from this step's
rate, and its state from the first one's. What the state remembers of the first rate would be used
for the whole run, whatever the schedule says. So `init` is looked at with two rates, and each entry
that differs is looked at in `update`, with two values of it:

    kept           it is a setting, and gets what `init` gives at this step's rate
    made anew      from the optimizer's own arguments: nothing to do
    anything else  it is a memory that began with the rate, and no schedule can be written into it
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Follower = Callable[[Any, Any, Any], Any]


def follow_rate(
    factory: Callable[[Any], Any],
    init: Callable[[Any, Any], Any],
    params: Any,
    rate: float,
    name: str,
) -> Follower:
    """Return the function from (state, params, rate) to the state that holds this rate.

    Args:
        factory: from a rate, which may be traced, to an optax transformation.
        init: from parameters and a rate to the state, compiled.
        params: the parameters to start from.
        rate: the peak of the run.
        name: the optimizer in words, for errors.

    Raises:
        ValueError: an entry depends on the rate and is neither kept nor made anew by `update`, or
            holds more than one number.
    """
    rates = np.float32(rate), np.float32(rate / 2)
    paths, tree = jax.tree_util.tree_flatten_with_path(init(params, rates[0]))
    first = [leaf for _, leaf in paths]
    second = jax.tree.leaves(init(params, rates[1]))
    held = [i for i in range(len(first)) if not _same(first[i], second[i])]
    if not held:
        return lambda state, _params, _rate: state

    @jax.jit
    def after(leaves: Any, rate: Any) -> Any:
        state = jax.tree.unflatten(tree, leaves)
        grads = jax.tree.map(jnp.ones_like, params)
        return jax.tree.leaves(factory(rate).update(grads, state, params)[1])

    for i in held:
        left, right = (
            after([*first[:i], leaf, *first[i + 1 :]], rates[0])[i]
            for leaf in (first[i], second[i])
        )
        kept = _same(left, first[i]) and _same(right, second[i])
        if jnp.size(first[i]) != 1 or not (kept or _same(left, right)):
            place = jax.tree_util.keystr(paths[i][0])
            raise ValueError(
                f"{name}: {place} of its state starts from the learning rate and is then changed "
                "by its own steps, so that it cannot follow a schedule; take the rate from the "
                "factory's argument in update"
            )

    def follow(state: Any, params: Any, rate: Any) -> Any:
        leaves, structure = jax.tree.flatten(state)
        fresh = jax.tree.leaves(factory(rate).init(params))
        for i in held:
            leaves[i] = jnp.asarray(fresh[i], leaves[i].dtype).reshape(leaves[i].shape)
        return jax.tree.unflatten(structure, leaves)

    return follow


def _same(left: Any, right: Any) -> bool:
    return np.array_equal(np.asarray(left), np.asarray(right))
