"""STAM as an optax transformation: the rule of ``stam_core._stam``, lifted."""

from typing import Any, NamedTuple, TypedDict, Unpack

import jax
import optax
from stam_core import STAM

from stam_jax._arguments import options_of, parameters, with_arguments
from stam_jax._lift import lift
from stam_jax._means import AxisName
from stam_jax._optimizer import optimizer_of
from stam_jax._tree import StatAxes


class ScaleByStamState(NamedTuple):
    """State of :func:`scale_by_stam`.

    Attributes:
        count: Steps taken, int32 scalar.
        mu: First moments, the parameters' tree.
        nu: Second moments, the parameters' tree.
        s2: Variance proxies, a packed vector: one entry per leaf (more with ``stat_axes``), in the
            order of ``jax.tree.leaves``.
        tau: Running scales, packed.
        b1_prod: Products of all beta1 so far, packed.
        beta1: Decays used in the last step, packed.
        s: z/(1+z) of the last step, packed; z is the normalised variance.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride] (optax's name)
    mu: Any
    nu: Any
    s2: jax.Array
    tau: jax.Array
    b1_prod: jax.Array
    beta1: jax.Array
    s: jax.Array

    __rule__ = STAM
    __packed_fields__ = STAM.statistic_names


class StamOptions(TypedDict, total=False):
    """What :func:`scale_by_stam` and :func:`stam` take; see there."""

    b1_base: jax.typing.ArrayLike
    b2: jax.typing.ArrayLike
    eps: jax.typing.ArrayLike
    adapt_strength: optax.ScalarOrSchedule
    tau_decay: jax.typing.ArrayLike
    fallback_threshold: jax.typing.ArrayLike
    variance_eps: jax.typing.ArrayLike
    statistics: str
    stat_sample: int | None
    stat_axes: StatAxes | None
    axis_name: AxisName | None
    mu_dtype: Any
    nu_dtype: Any
    parity: str | None
    eps_root: jax.typing.ArrayLike


@with_arguments("b1_base", "b2", "eps", shared=options_of(StamOptions, STAM.hyperparams()))
def scale_by_stam(*_: Any, **options: Unpack[StamOptions]) -> optax.GradientTransformationExtraArgs:
    """Rescale gradients by STAM, without learning rate, sign or weight decay.

    The quotient of equation (9) of the rule, (m/(1-P)) / (sqrt(v/(1-b2^t) + er) + eps), in the
    gradient's dtype. See :func:`stam` for the arguments.
    """
    return lift(STAM, ScaleByStamState, **options)


@with_arguments(
    *("learning_rate", "b1_base", "b2", "eps", "weight_decay"),
    *("adapt_strength", "tau_decay", "fallback_threshold"),
    shared=parameters(scale_by_stam),
)
def stam(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    *_: Any,
    weight_decay: optax.ScalarOrSchedule = 0.01,
    mask: Any = None,
    nonfinite: str = "propagate",
    **options: Unpack[StamOptions],
) -> optax.GradientTransformationExtraArgs:
    """Return STAM: AdamW whose first-moment decay follows the variance of the residual.

    Per tensor, with gradient g, first moment m, second moment v and step t = 1, 2, ...:

        r     = g - m
        s2    = b2*s2  + (1-b2)*mean(|r|^2)
        tau   = td*tau + (1-td)*mean(|r|)
        z     = min(s2, threshold*(tau^2+veps)) / (tau^2+veps)
        beta1 = clip(b1*(1 - a*z/(1+z)), min(b1, max(0.5, b1*(1-a))), b1)
        m     = beta1*m + (1-beta1)*g
        v     = b2*v + (1-b2)*|g|^2
        P     = P*beta1
        u     = -lr * ((m/(1-P)) / (sqrt(v/(1-b2^t) + er) + eps) + wd*p)

    The update u is additive, as everywhere in optax. ``adapt_strength=0`` is AdamW. For dense noise
    z is at least 1 and beta1 settles near 0.79 whatever the data, so the control to compare with is
    AdamW with b1 tuned.

    Args:
        learning_rate: Step size lr, > 0, or a schedule of the step count.
        b1_base: Largest decay of the first moment, in (0, 1).
        b2: Decay of the second moment and of s2, in (0, 1).
        eps: Added to the root of the second moment, >= 0.
        weight_decay: Decoupled weight decay wd, >= 0, or a schedule.
        mask: Which leaves are decayed: a tree of booleans, or a callable from parameters to one.
        adapt_strength: How far beta1 may fall below ``b1_base``, in [0, 0.5], or a schedule.
        tau_decay: Decay td of the running scale, in (0, 1).
        fallback_threshold: Cap on z, > 0.
        variance_eps: veps, >= 1e-30.
        statistics: "published" as above, or "corrected": bias-corrected and scale-free.
        stat_sample: Take the means over a fixed strided sample of at most this many entries of a
            tensor (per kept slice with ``stat_axes``); None for all. Saves one pass over gradient
            and momentum.
        stat_axes: A callable (path, leaf) -> axes along which statistics, and beta1, are kept
            apart: for scan-stacked layers, ``lambda path, leaf: (0,) if path.startswith("layers/")
            else ()``.
        axis_name: Mapped axis of ``jax.shard_map``, or a tuple of them, over which a tensor is
            spread; its means then run over all shards. Under ``jax.jit`` means are global already.
        mu_dtype: Storage dtype of the first moment; None for the parameter's.
        nu_dtype: Storage dtype of the second moment; None for at least float32.
        nonfinite: "propagate" as optax does; "zero" replaces non-finite gradient entries by 0;
            "skip" leaves out the whole step.
        parity: None, or "stam-optimizer-0.1.0" to reproduce the published package.
        eps_root: Added to the second moment under the root, >= 0, as in ``optax.adamw``: a gradient
            through a step needs it where an entry has had no gradient but 0.

    Returns:
        The transformation; its ``update`` needs ``params`` unless ``weight_decay`` is 0.

    Raises:
        ValueError: A hyperparameter is out of range.
        TypeError: A hyperparameter is not a number, or a decay is a 16-bit array.

    Example:
        >>> import jax, jax.numpy as jnp, optax, stam_jax
        >>> optimizer = stam_jax.stam(learning_rate=0.1)
        >>> params = {"w": jnp.asarray([1.0, -2.0])}
        >>> state = optimizer.init(params)
        >>> loss = lambda params: jnp.sum(params["w"] ** 2)
        >>> for _ in range(3):
        ...     updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        ...     params = optax.apply_updates(params, updates)
        ...     print(f"{loss(params):.4f}")
        4.4106
        3.8655
        3.3657

    References:
        The project page of stam-optimizer 0.1.0, "Core Update Rules"; the equations' numbers and
        the differences from that package stand in ``stam_core._stam``.
    """
    return optimizer_of(
        STAM,
        scale_by_stam(**options),
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        mask=mask,
        nonfinite=nonfinite,
        axis_name=options.get("axis_name"),
    )
