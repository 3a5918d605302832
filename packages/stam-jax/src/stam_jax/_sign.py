"""The sign of momentum as an optax transformation: the rule of ``stam_core._sign``, lifted."""

from typing import Any, NamedTuple

import jax
import optax
from stam_core import SIGN

from stam_jax import _storage
from stam_jax._lift import lift


class ScaleBySignMomentumState(NamedTuple):
    """State of :func:`scale_by_sign_momentum`.

    Attributes:
        count: Steps taken, int32 scalar.
        mu: First moments, the parameters' tree: floating, int8 codes, or of 4-bit codes two in a
            byte, uint8, ``(rows, 1, ..., pairs)``. None without momentum.
        mu_scale: Scales of the codes, the parameters' tree: float32, ``(rows, 1, ..., blocks)``
            where the moment is a code, and empty where it is not. Each has as many dimensions as
            its parameter, and can be sharded along the first as that is. None without a code.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride] (optax's name)
    mu: Any
    mu_scale: Any


def scale_by_sign_momentum(
    sign_momentum: jax.typing.ArrayLike = 0.9,
    *,
    state_dtype: Any = None,
    rounding_seed: int = 0,
    maximize: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Replace gradients by the sign of their momentum.

    Per entry, m = sm*m + (1-sm)*g and u = sign(m), in float32 at least; m is rounded to its storage
    after its sign was taken. sign(nan) is nan. With equal betas this is ``optax.scale_by_lion``.

    Args:
        sign_momentum: Decay sm of the moment, in [0, 1); the number 0 keeps no state.
        state_dtype: Storage of m: None for the parameter's dtype, a floating dtype, or ``"int8"``:
            1.02 bytes per entry, for leaves of two dimensions, 4,096 entries and rows of 16 entries
            or more; float32 for the others. ``"int4"``: 0.53 bytes per entry for the same leaves,
            rounded stochastically with noise that depends on seed, step, dotted path and position
            alone (inside ``jax.shard_map`` the position in the part). Leaves in both may be sharded
            along their first dimension.
        rounding_seed: The seed.
        maximize: Turn the sign of the gradients.

    Raises:
        ValueError: A value is out of range, or the dtype is none of these. ``init`` and
            ``update``: on a mesh with explicit axes a leaf in a code is sharded along another
            dimension than the first.
        TypeError: ``sign_momentum`` is not a number, or a 16-bit array.

    Example:
        >>> import jax.numpy as jnp, stam_jax
        >>> transformation = stam_jax.scale_by_sign_momentum(0.5)
        >>> state = transformation.init({"w": jnp.zeros(3)})
        >>> for g in ([1.0, -4.0, 0.0], [-3.0, 1.0, 0.0]):
        ...     updates, state = transformation.update({"w": jnp.asarray(g)}, state)
        ...     print(updates["w"], state.mu["w"])
        [ 1. -1.  0.] [ 0.5 -2.   0. ]
        [-1. -1.  0.] [-1.25 -0.5   0.  ]
    """
    return sign_section(sign_momentum, state_dtype, maximize=maximize, seed=rounding_seed)


def sign_section(
    sign_momentum: jax.typing.ArrayLike,
    state_dtype: Any,
    *,
    maximize: bool,
    wide: bool = False,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Do as :func:`scale_by_sign_momentum`; with ``wide`` in the dtype of the arithmetic."""
    return lift(
        SIGN,
        ScaleBySignMomentumState,
        dtypes={"mu": _storage.canonical("state_dtype", state_dtype, codes=("int8", "int4"))},
        wide=wide,
        seed=seed,
        sign_momentum=sign_momentum,
        maximize=maximize,
    )
