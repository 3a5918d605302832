"""Reading the statistics by name."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from stam_core import Report

from stam_jax import _tree
from stam_jax._tree import StatAxes


class LeafDiagnostics(NamedTuple):
    """What the optimizer measured on one leaf; scalars, or one entry per kept slice.

    Attributes:
        beta1: Decay of the first moment in the last step.
        z: Normalised variance of the last step, from which beta1 follows.
        variance: STAM: s2, the moving mean of |g - m|^2. STAMLite: the share of e2 that is
            variance, z*e2. Neither is bias-corrected.
        scale: STAM: tau, the moving mean of |g - m|. STAMLite: sqrt(e2). Neither is bias-corrected.
    """

    beta1: jax.Array
    z: jax.Array
    variance: jax.Array
    scale: jax.Array


def is_scaling_state(node: Any) -> bool:
    """Tell whether ``node`` is the state of a lifted rule with packed statistics."""
    return hasattr(type(node), "__packed_fields__") and hasattr(type(node), "__rule__")


def leaves_of(state: Any) -> Any:
    """Return a tree of the leaves that a scaling state belongs to: its first moments."""
    return getattr(state, type(state).__rule__.moments[0].name)


def diagnostics(
    state: Any, params: Any, *, stat_axes: StatAxes | None = None
) -> dict[str, LeafDiagnostics]:
    """Return what STAM or STAMLite measured in the last step, leaf by leaf.

    Works inside ``jax.jit``; the result is a tree of arrays, to be logged or collected by
    ``jax.lax.scan``.

    Args:
        state: An optimizer state that holds one of ours: chained, masked, partitioned, injected;
            the ``opt_state`` of a ``flax.nnx.Optimizer`` too.
        params: The parameters it belongs to; ``nnx.state(model, nnx.Param)`` for Flax NNX, whose
            paths end in ``/value``.
        stat_axes: The callable that the optimizer was built with, if any.

    Returns:
        Leaf path to :class:`LeafDiagnostics`. Leaves that a mask keeps from the optimizer are left
        out.

    Raises:
        ValueError: There is no such state, it belongs to other parameters, or two of its leaves
            have the same path.

    Example:
        >>> import jax.numpy as jnp, stam_jax
        >>> optimizer = stam_jax.stam()
        >>> params = {"w": jnp.asarray([1.0, -2.0])}
        >>> _, state = optimizer.update(params, optimizer.init(params), params)
        >>> leaf = stam_jax.diagnostics(state, params)["w"]
        >>> print(f"{leaf.beta1:.4f} {leaf.z:.4f} {leaf.variance:.4f} {leaf.scale:.4f}")
        0.7349 11.1106 0.0025 0.0150
    """
    found = [x for x in jax.tree.leaves(state, is_leaf=is_scaling_state) if is_scaling_state(x)]
    found = [x for x in found if type(x).__rule__.report is not None]
    if not found:
        msg = (
            f"no STAM or STAMLite state in {type(state).__name__}: pass the state that "
            "stam_jax.stam or stam_jax.stam_lite made, alone or inside other optax states"
        )
        raise ValueError(msg)
    known = set(_tree.leaf_names(params))
    result: dict[str, LeafDiagnostics] = {}
    for inner in found:
        names = _tree.unique_names(leaves_of(inner))
        unknown = [name for name in names if name not in known]
        if unknown:
            msg = (
                f"the state has a leaf {unknown[0]!r} that params lack: pass the parameters this "
                "state was made for"
            )
            raise ValueError(msg)
        layout = _tree.layout(leaves_of(inner), stat_axes)
        columns = zip(*(layout.unpack(x) for x in _packed_report(inner)), strict=True)
        result.update(
            (name, LeafDiagnostics(*(jnp.squeeze(x) for x in column)))
            for name, column in zip(names, columns, strict=True)
        )
    return result


def _packed_report(state: Any) -> Report:
    statistics = {}
    for name in state.__packed_fields__:
        # ``flax.nnx.Optimizer`` keeps a vector in a variable.
        (statistics[name],) = jax.tree.leaves(getattr(state, name))
    return state.__rule__.report(statistics, jnp)
