"""STAMLite as an optax transformation: the rule of ``stam_core._stam_lite``, lifted."""

from typing import Any, NamedTuple, TypedDict, Unpack

import jax
import optax
from stam_core import STAM_LITE

from stam_jax import _dtypes
from stam_jax._arguments import options_of, parameters, with_arguments
from stam_jax._lift import lift
from stam_jax._means import AxisName
from stam_jax._optimizer import optimizer_of
from stam_jax._tree import StatAxes


class ScaleByStamLiteState(NamedTuple):
    """State of :func:`scale_by_stam_lite`.

    Attributes:
        count: Steps taken, int32 scalar.
        mu: First moments, the parameters' tree.
        e1: Means of the gradient, a packed vector: one entry per leaf (more with ``stat_axes``), in
            the order of ``jax.tree.leaves``; complex if any leaf is.
        e2: Mean squares of the gradient, packed.
        beta1: Decays in force, packed.
        b1_prod: Products of all beta1 so far, packed.
        s: z/(1+z) of the last step, packed; z is the normalised variance.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride] (optax's name)
    mu: Any
    e1: jax.Array
    e2: jax.Array
    beta1: jax.Array
    b1_prod: jax.Array
    s: jax.Array

    __rule__ = STAM_LITE
    __packed_fields__ = STAM_LITE.statistic_names


class StamLiteOptions(TypedDict, total=False):
    """What :func:`scale_by_stam_lite` and :func:`stam_lite` take; see there."""

    b1_base: jax.typing.ArrayLike
    eps: jax.typing.ArrayLike
    adapt_strength: optax.ScalarOrSchedule
    moment_decay: jax.typing.ArrayLike
    beta1_update_interval: jax.typing.ArrayLike
    state_dtype: Any
    stat_sample: int | None
    stat_axes: StatAxes | None
    axis_name: AxisName | None
    parity: str | None
    eps_root: jax.typing.ArrayLike


@with_arguments(
    *("b1_base", "eps"),
    shared=options_of(StamLiteOptions, STAM_LITE.hyperparams(), state_dtype="float32"),
)
def scale_by_stam_lite(
    *_: Any, **options: Unpack[StamLiteOptions]
) -> optax.GradientTransformationExtraArgs:
    """Rescale gradients by STAMLite, without learning rate, sign or weight decay.

    The quotient of equation (5) of the rule, (m/(1-P)) / (sqrt(e2/c + er) + eps), in the gradient's
    dtype. See :func:`stam_lite` for the arguments.
    """
    stored = _dtypes.canonical_float("state_dtype", options.pop("state_dtype"))
    return lift(STAM_LITE, ScaleByStamLiteState, dtypes={"mu": stored}, **options)


@with_arguments(
    *("learning_rate", "b1_base", "eps", "weight_decay", "adapt_strength", "moment_decay"),
    *("beta1_update_interval", "state_dtype"),
    shared=parameters(scale_by_stam_lite),
)
def stam_lite(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    *_: Any,
    weight_decay: optax.ScalarOrSchedule = 0.01,
    mask: Any = None,
    nonfinite: str = "propagate",
    **options: Unpack[StamLiteOptions],
) -> optax.GradientTransformationExtraArgs:
    """Return STAMLite: adaptive momentum over a denominator that is one number per tensor.

    Per tensor, with gradient g, first moment m and step t = 1, 2, ...:

        e1    = md*e1 + (1-md)*mean(g),   e2 = md*e2 + (1-md)*mean(|g|^2),   c = 1 - md^t
        z     = max(e2/c - |e1/c|^2, 0) / (e2/c + eps)
        beta1 = clip(b1*(1 - a*z/(1+z)), min(b1, max(0.5, b1*(1-a))), b1)   at t = 1, k+1, 2k+1, ...
        m     = beta1*m + (1-beta1)*g,    P = P*beta1
        u     = -lr * ((m/(1-P)) / (sqrt(e2/c + er) + eps) + wd*p)

    State is one buffer per parameter. Its peers are NovoGrad and Adam-mini: without a second moment
    per entry it is not AdamW with less memory.

    Args:
        learning_rate: Step size lr, > 0, or a schedule of the step count.
        b1_base: Largest decay of the first moment, in (0, 1).
        eps: Added to the denominators, >= 1e-30.
        weight_decay: Decoupled weight decay wd, >= 0, or a schedule.
        mask: Which leaves are decayed: a tree of booleans, or a callable from parameters to one.
        adapt_strength: How far beta1 may fall below ``b1_base``, in [0, 0.5], or a schedule.
        moment_decay: Decay md of the gradient's moments, in (0, 1).
        beta1_update_interval: Steps k between two updates of beta1, >= 1.
        state_dtype: Storage dtype of m, a floating dtype or its name; None for the parameter's. The
            scalars are never stored in less than float32.
        stat_sample: Take the means over a fixed strided sample of at most this many entries of a
            tensor; None for all.
        stat_axes: A callable (path, leaf) -> axes along which statistics are kept apart.
        axis_name: Mapped axis of ``jax.shard_map``, or a tuple of them, over which a tensor is
            spread.
        nonfinite: "propagate", "zero" or "skip".
        parity: None, or "stam-optimizer-0.1.0" to reproduce the published package.
        eps_root: Added to the mean square under the root, >= 0.

    Returns:
        The transformation; its ``update`` needs ``params`` unless ``weight_decay`` is 0.

    Raises:
        ValueError: A hyperparameter is out of range.
        TypeError: A hyperparameter is not a number, or a decay is a 16-bit array.

    Example:
        >>> import jax, jax.numpy as jnp, optax, stam_jax
        >>> optimizer = stam_jax.stam_lite(learning_rate=0.1)
        >>> params = {"w": jnp.asarray([1.0, -2.0])}
        >>> state = optimizer.init(params)
        >>> loss = lambda params: jnp.sum(params["w"] ** 2)
        >>> for _ in range(3):
        ...     updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        ...     params = optax.apply_updates(params, updates)
        ...     print(f"{loss(params):.4f}")
        4.3782
        3.8003
        3.2672

    References:
        The project page of stam-optimizer 0.1.0, "STAMLite Approximation"; Ginsburg et al. (2019),
        NovoGrad; Zhang et al. (2024), Adam-mini.
    """
    return optimizer_of(
        STAM_LITE,
        scale_by_stam_lite(**options),
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        mask=mask,
        nonfinite=nonfinite,
        axis_name=options.get("axis_name"),
    )
