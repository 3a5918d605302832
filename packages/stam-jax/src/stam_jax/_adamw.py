"""The AdamW section of STAC: the rule of ``stam_core._adamw``, lifted.

Differs from ``optax.scale_by_adam`` in what PyTorch does otherwise:
1. moments are computed in float32 at least, whatever they are stored in;
2. amsgrad keeps the running maximum of nu, not of nu corrected for its bias;
3. the real and the imaginary part of a complex entry are two entries.
"""

from typing import Any, NamedTuple

import jax
import optax
from stam_core import ADAMW

from stam_jax import _storage
from stam_jax._lift import lift


class ScaleByCodedAdamState(NamedTuple):
    """State of the AdamW section of :func:`stam_jax.stac` with ``adamw_state_dtype="int8"``.

    Attributes:
        count: Steps taken, int32 scalar.
        mu: First moments, the parameters' tree: int8 codes, or float32 for small leaves.
        nu: Second moments, likewise with uint8 codes.
        mu_scale: Scales of the codes of ``mu``, as those of ``ScaleBySignMomentumState``.
        nu_scale: Scales of those of ``nu``.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride] (optax's name)
    mu: Any
    nu: Any
    mu_scale: Any
    nu_scale: Any


class ScaleByCodedAmsgradState(NamedTuple):
    """Do as :class:`ScaleByCodedAdamState`, with the running maximum of the second moments."""

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride] (optax's name)
    mu: Any
    nu: Any
    nu_max: Any
    mu_scale: Any
    nu_scale: Any
    nu_max_scale: Any


def adamw_section(
    *, state_dtype: Any, amsgrad: bool, wide: bool, seed: int, **options: Any
) -> optax.GradientTransformationExtraArgs:
    """Rescale gradients as AdamW does, without learning rate, sign or decay.

    Args:
        state_dtype: Storage of the moments: None for the parameter's dtype, a floating one, or
            ``"int8"``.
        amsgrad: Divide by the running maximum of the second moment.
        wide: Return the direction in the dtype of the arithmetic, and not in the gradient's.
        seed: Of the noise by which second moments in codes are rounded.
        **options: b1, b2, eps and maximize.

    Returns:
        The transformation; its state is optax's ``ScaleByAdamState`` or ``ScaleByAmsgradState``,
        and one of the two above where codes are asked for.
    """
    stored = _storage.canonical("adamw_state_dtype", state_dtype)
    if stored == _storage.INT8:
        state = ScaleByCodedAmsgradState if amsgrad else ScaleByCodedAdamState
    else:
        state = optax.ScaleByAmsgradState if amsgrad else optax.ScaleByAdamState
    return lift(
        ADAMW,
        state,
        dtypes={moment.name: stored for moment in ADAMW.moments},
        wide=wide,
        seed=seed,
        amsgrad=amsgrad,
        **options,
    )
