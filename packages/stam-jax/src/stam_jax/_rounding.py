"""Applying updates to bfloat16 parameters without losing the small ones."""

import math
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import stam_core
from jax import lax

from stam_jax import _dtypes


def apply_updates(params: Any, updates: Any, key: jax.Array) -> Any:
    """Add updates to parameters, rounding bfloat16 leaves stochastically.

    bfloat16 has 8 bits of significand, so rounding to nearest drops every update below 1/256 of the
    parameter (1/512 on average), for ever. Here the float32 sum is rounded up with the probability
    that makes the rounded value right on average. Leaves of other dtypes are updated as
    ``optax.apply_updates`` does; of 8 bits and fewer, which JAX adds to no other dtype, through
    float32 and to nearest.

    Args:
        params: Parameters.
        updates: Additive updates, the same tree; ``None`` leaves are passed over.
        key: A JAX random key, another one in every step, for example
            ``jax.random.fold_in(key, step)``. The bits of a leaf depend on the key, its path and
            its shape alone: not on other leaves, and not on how it is sharded.

    Returns:
        The new parameters, dtypes unchanged.

    Example:
        >>> import jax, jax.numpy as jnp, optax, stam_jax
        >>> params = {"w": jnp.full((1000,), 256.0, jnp.bfloat16)}
        >>> updates = {"w": jnp.full((1000,), 0.25)}
        >>> nearest = optax.apply_updates(params, updates)
        >>> rounded = stam_jax.apply_updates(params, updates, jax.random.key(0))
        >>> print(f"{nearest['w'].astype(float).mean():.2f}")
        256.00
        >>> print(f"{rounded['w'].astype(float).mean():.1f}")
        256.2
    """

    def apply(path: Any, p: Any, u: Any) -> Any:
        if p is None or u is None:
            return p
        dtype = jnp.asarray(p).dtype
        if _dtypes.is_narrow(dtype):
            return (p.astype(jnp.float32) + u.astype(jnp.float32)).astype(dtype)
        if dtype != jnp.bfloat16:
            return optax.apply_updates(p, u)
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        leaf_key = jax.random.fold_in(key, zlib.crc32(name.encode()))
        return round_stochastically(p.astype(jnp.float32) + u, leaf_key)

    return jax.tree_util.tree_map_with_path(apply, params, updates, is_leaf=lambda x: x is None)


def round_stochastically(x: jax.Array, key: jax.Array) -> jax.Array:
    """Round float32 to bfloat16, up or down with the probabilities that keep the mean.

    A bfloat16 is the upper half of a float32. Adding a uniform 16-bit number to the lower half
    carries into the upper with exactly the probability wanted. NaN and infinity are rounded to
    nearest: a carry would turn the one into the other.

    Args:
        x: Any float32 array.
        key: A JAX random key.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x = jnp.full((4096,), 1.0 + 1 / 512)
        >>> rounded = round_stochastically(x, jax.random.key(0))
        >>> [float(v) for v in jnp.unique(rounded)], f"{rounded.astype(float).mean():.3f}"
        ([1.0, 1.0078125], '1.002')
    """
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    return _carried(x.astype(jnp.float32), noise)


def _carried(x: jax.Array, noise: jax.Array) -> jax.Array:
    """Round float32 to bfloat16 with 16 random bits, uint32, for each entry."""
    carried = lax.bitcast_convert_type(x, jnp.uint32) + noise
    truncated = (carried >> 16).astype(jnp.uint16)
    rounded = lax.bitcast_convert_type(truncated, jnp.bfloat16)
    return jnp.where(jnp.isfinite(x), rounded, x.astype(jnp.bfloat16))


class RoundingState(NamedTuple):
    """State of :func:`round_updates_stochastically`.

    Attributes:
        count: Steps taken, int32 scalar.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride] (optax's name)


def _is_bfloat16(leaf: Any) -> bool:
    return _dtypes.dtype_of(leaf) == jnp.bfloat16


def round_updates_stochastically(seed: int) -> optax.GradientTransformationExtraArgs:
    """Move each update of a bfloat16 leaf to where it leads to a number that bfloat16 holds.

    The sum of parameter and update is rounded to one of its two neighbours, with the noise of
    ``stam_core.noise``: a hash of seed, dotted path, step and position. The new update is the
    difference in float32, so that ``optax.apply_updates`` arrives there.

    Args:
        seed: The seed.
    """

    def init(params: Any) -> RoundingState:
        del params
        return RoundingState(jnp.zeros([], jnp.int32))

    def update(
        updates: Any, state: RoundingState, params: Any = None, **extra: Any
    ) -> tuple[Any, RoundingState]:
        del extra
        if params is None:
            msg = (
                "params are missing, and stochastic rounding needs them: call "
                "update(grads, state, params)"
            )
            raise ValueError(msg)
        count = jnp.asarray(optax.safe_increment(state.count))

        def rounded(path: Any, u: Any, p: Any) -> Any:
            if u is None or not _is_bfloat16(p):
                return u
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            key = jnp.asarray(stam_core.noise.noise_key(seed, name), jnp.uint32)
            low, high = positions(jnp.shape(p))
            noise = stam_core.noise.random_bits(key, count.astype(jnp.uint32), low, high, xp=jnp)
            wide = p.astype(jnp.float32)
            return _carried(wide + u, noise).astype(jnp.float32) - wide

        new = jax.tree_util.tree_map_with_path(
            rounded, updates, params, is_leaf=lambda x: x is None
        )
        return new, RoundingState(count)

    return optax.GradientTransformationExtraArgs(init, update)  # type: ignore[arg-type]


def positions(shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Return the C-order position of every entry, its lower and its higher 32 bits."""
    low = jnp.zeros(shape, jnp.uint32)
    high = jnp.zeros(shape, jnp.uint32)
    stride = math.prod(shape)
    for axis, length in enumerate(shape):
        stride //= max(length, 1)
        index = lax.broadcasted_iota(jnp.uint32, shape, axis)
        step_low, step_high = _product(index, stride)
        low, carry = low + step_low, (low > ~step_low).astype(jnp.uint32)
        high = high + step_high + carry
    return low, high


def _product(x: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
    """Return the lower and the higher 32 bits of a product of 32-bit numbers."""
    a, b = x & 0xFFFF, x >> 16
    c, d = n & 0xFFFF, n >> 16
    low, middle = a * c, b * c
    other = a * d + (middle & 0xFFFF) + (low >> 16)
    return (other << 16) | (low & 0xFFFF), b * d + (middle >> 16) + (other >> 16)
