"""The AdamW section of STAC: the rule of ``stam_core._adamw``, lifted.

Differs from ``optax.scale_by_adam`` in what PyTorch does otherwise:
1. moments are computed in float32 at least, whatever they are stored in;
2. amsgrad keeps the running maximum of nu, not of nu corrected for its bias;
3. the real and the imaginary part of a complex entry are two entries.
"""

from typing import Any

import optax
from stam_core import ADAMW

from stam_jax import _dtypes
from stam_jax._lift import lift


def adamw_section(
    *, state_dtype: Any, amsgrad: bool, wide: bool, **options: Any
) -> optax.GradientTransformationExtraArgs:
    """Rescale gradients as AdamW does, without learning rate, sign or decay.

    Args:
        state_dtype: Storage of the moments; None for the parameter's dtype.
        amsgrad: Divide by the running maximum of the second moment.
        wide: Return the direction in the dtype of the arithmetic, and not in the gradient's.
        **options: b1, b2, eps and maximize.

    Returns:
        The transformation; its state is optax's ``ScaleByAdamState`` or ``ScaleByAmsgradState``.
    """
    stored = _dtypes.canonical_float("adamw_state_dtype", state_dtype)
    return lift(
        ADAMW,
        optax.ScaleByAmsgradState if amsgrad else optax.ScaleByAdamState,
        dtypes={moment.name: stored for moment in ADAMW.moments},
        wide=wide,
        amsgrad=amsgrad,
        **options,
    )
