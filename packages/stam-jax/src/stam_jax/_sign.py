"""The sign of momentum as an optax transformation.

The arithmetic is that of ``stam_core`` (equations 1 and 2 of its module ``_stac``, and its 8-bit
code), called here under ``jax.jit``, leaf by leaf. This module adds dtypes at the edges, state, and
one thing that JAX needs: XLA merges a product with the sum that it goes into, and 1/sqrt(x) with an
approximation of it, so each such operation is kept apart. The codes have then the same bits as in
PyTorch.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import stam_core
from jax import lax
from stam_core import SIGN, Exact, STACHyperparams

from stam_jax import _dtypes, _hyperparams, _tree

INT8 = "int8"
_WORDS = {4: jnp.uint32, 8: jnp.uint64}


class ScaleBySignMomentumState(NamedTuple):
    """State of :func:`scale_by_sign_momentum`.

    Attributes:
        count: Steps taken, int32 scalar.
        mu: First moments, the parameters' tree: floating, or int8 codes. None without momentum.
        mu_scale: Scales of the codes, the parameters' tree: float32, ``(rows, 1, ..., blocks)``
            where the moment is int8, and empty where it is not. Each has as many dimensions as its
            parameter, and can be sharded along the first as that is. None without int8 storage.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride] (optax's name)
    mu: Any
    mu_scale: Any


def exact(count: jax.Array) -> Exact:
    """Return the operations of a program that XLA must leave as they are written.

    XLA removes barriers and conversions that change nothing before code is made, and the code
    maker then merges a product with a sum, and divides by a number that many entries share by
    multiplying with its reciprocal. An exclusive or with bits that are 0, but are not known to be,
    stays.

    Args:
        count: A step count, known to the program only when it runs; never negative.
    """
    negative = count < 0

    def bits(x: jax.Array) -> jax.Array:
        return lax.bitcast_convert_type(x, _WORDS[x.dtype.itemsize])

    def keep(x: jax.Array) -> jax.Array:
        if jnp.issubdtype(x.dtype, jnp.complexfloating):
            return x  # These are never coded, and no bits are promised.
        return lax.bitcast_convert_type(bits(x) ^ negative.astype(bits(x).dtype), x.dtype)

    def divide(x: jax.Array, y: jax.Array) -> jax.Array:
        # Bits of x, so that the divisor of no two entries is known to be the same.
        zero = jnp.where(negative, bits(x), 0)
        return keep(x / lax.bitcast_convert_type(bits(y) ^ zero, y.dtype))

    return Exact(keep, divide)


@functools.partial(jax.jit, static_argnames=("static", "wide"))
def _update_leaf(
    g: jax.Array,
    mu: jax.Array | None,
    scale: jax.Array | None,
    count: jax.Array,
    dynamic: dict[str, Any],
    static: tuple[tuple[str, Any], ...],
    wide: bool,
) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
    """Return direction, moment and scale of one leaf; a scale without entries belongs to none."""
    dtype = _dtypes.compute_dtype(g.dtype)
    out = dtype if wide else g.dtype
    hp = _hyperparams.join(STACHyperparams, static, dynamic, _dtypes.real_dtype(dtype))
    pairs = _dtypes.is_complex(dtype)

    def parts(x: jax.Array) -> jax.Array:
        x = x.astype(dtype)
        return jnp.stack([x.real, x.imag]) if pairs else x

    def whole(x: jax.Array) -> jax.Array:
        return jax.lax.complex(x[0], x[1]) if pairs else x

    kept = exact(count)
    g_wide = SIGN.prepare(parts(g), hp, xp=jnp)
    if mu is None:
        d, _ = SIGN.update(g_wide, {}, {}, count, hp, xp=jnp)
        return whole(d).astype(out), None, scale
    coded = scale if mu.dtype == jnp.int8 else None
    if coded is not None:
        flat = coded.reshape(stam_core.int8.scale_shape(mu.shape))
        mu_wide = stam_core.int8.decode(mu, flat, xp=jnp, exact=kept).astype(dtype)
    else:
        mu_wide = parts(mu)
    d, new = SIGN.update(g_wide, {"mu": mu_wide}, {}, count, hp, xp=jnp, exact=kept)
    if coded is not None:
        wide_mu = new["mu"].astype(jnp.float32)
        stored, flat = stam_core.int8.encode(wide_mu, xp=jnp, exact=kept)
        scale = flat.reshape(coded.shape)
    else:
        stored = _dtypes.stored(whole(new["mu"]), mu.dtype)
    return whole(d).astype(out), stored, scale


def _is_coded(leaf: Any) -> bool:
    return not _dtypes.is_complex(_dtypes.dtype_of(leaf)) and stam_core.int8.has_int8_code(
        jnp.shape(leaf)
    )


def _check_rows_whole(tree: Any) -> None:
    """Raise where a row of an int8 moment would be cut, and shardings are part of the types.

    With automatic axes the compiler puts the pieces of a row together.

    Raises:
        ValueError: One would be, or a size is not known; the message names the leaf.
    """
    for name, leaf in zip(_tree.leaf_names(tree), jax.tree.leaves(tree), strict=True):
        if not all(isinstance(length, int) for length in jnp.shape(leaf)):
            msg = (
                f"leaf {name!r} has the symbolic shape {jnp.shape(leaf)}, and its size decides "
                'whether its moment is stored in "int8": take "bfloat16", or export for fixed '
                "shapes"
            )
            raise ValueError(msg)
        spec = _explicit_spec(leaf) if _is_coded(leaf) else ()
        if any(part is not None for part in spec[1:]):
            msg = (
                f"leaf {name!r} is sharded as {spec} on a mesh with explicit axes, and blocks of "
                'an int8 moment lie along its rows: shard it along dimension 0, or leave "int8" out'
            )
            raise ValueError(msg)


def _explicit_spec(leaf: Any) -> Any:
    # Explicit axes came after the oldest JAX, and a NumPy array has no sharding.
    if not hasattr(jax.sharding, "auto_axes") or not isinstance(leaf, jax.Array):
        return ()
    return jax.typeof(leaf).sharding.spec


def _zero_moment(leaf: Any, requested: Any) -> jax.Array:
    if requested != INT8:
        return jnp.zeros_like(leaf, dtype=_dtypes.moment_dtype(requested, _dtypes.dtype_of(leaf)))
    if _is_coded(leaf):
        return jnp.zeros_like(leaf, dtype=jnp.int8)
    return jnp.zeros_like(leaf, dtype=_dtypes.moment_dtype(jnp.float32, _dtypes.dtype_of(leaf)))


def _zero_scale(leaf: Any) -> jax.Array:
    shape = jnp.shape(leaf)
    if not _is_coded(leaf):
        # Nothing, in as many dimensions: any sharding of the parameter divides it.
        return jnp.zeros((0,) * len(shape), jnp.float32) if shape else jnp.zeros((0,), jnp.float32)
    rows, blocks = stam_core.int8.scale_shape(shape)
    return jnp.zeros((rows, *[1] * (len(shape) - 2), blocks), jnp.float32)


def scale_by_sign_momentum(
    sign_momentum: jax.typing.ArrayLike = 0.9,
    *,
    state_dtype: Any = None,
    maximize: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Replace gradients by the sign of their momentum.

    Per entry, m = sm*m + (1-sm)*g and u = sign(m), in float32 at least; m is rounded to its storage
    after its sign was taken. sign(nan) is nan. With equal betas this is ``optax.scale_by_lion``.

    Args:
        sign_momentum: Decay sm of the moment, in [0, 1); the number 0 keeps no state.
        state_dtype: Storage of m: None for the parameter's dtype, a floating dtype, or ``"int8"``:
            1.02 bytes per entry, for leaves of two dimensions, 4,096 entries and rows of 16 entries
            or more; float32 for the others. int8 leaves may be sharded along their first dimension.
        maximize: Turn the sign of the gradients.

    Raises:
        ValueError: A value is out of range, or the dtype is neither floating nor int8. ``init`` and
            ``update``: on a mesh with explicit axes an int8 leaf is sharded along another dimension
            than the first.
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
    return sign_section(sign_momentum, state_dtype=state_dtype, maximize=maximize, wide=False)


def sign_section(
    sign_momentum: jax.typing.ArrayLike, *, state_dtype: Any, maximize: bool, wide: bool
) -> optax.GradientTransformationExtraArgs:
    """Do as :func:`scale_by_sign_momentum`; with ``wide`` in the dtype of the arithmetic."""
    hyperparams = STACHyperparams(sign_momentum=sign_momentum, maximize=maximize)
    _hyperparams.check_decay_precision(hyperparams)
    requested = _canonical("state_dtype", state_dtype)
    stateless = not _hyperparams.is_dynamic(sign_momentum) and sign_momentum == 0

    def init(params: Any) -> ScaleBySignMomentumState:
        _tree.check_floating(params, "parameter")
        coded = requested == INT8 and not stateless
        if coded:
            _check_rows_whole(params)
        return ScaleBySignMomentumState(
            count=jnp.zeros([], jnp.int32),
            mu=None
            if stateless
            else jax.tree.map(lambda leaf: _zero_moment(leaf, requested), params),
            mu_scale=jax.tree.map(_zero_scale, params) if coded else None,
        )

    def update(
        updates: Any, state: ScaleBySignMomentumState, params: Any = None, **extra: Any
    ) -> tuple[Any, ScaleBySignMomentumState]:
        del params, extra
        _tree.check_floating(updates, "gradient")
        grads, treedef = jax.tree.flatten(updates)
        grads = [jnp.asarray(g) for g in grads]
        absent = [None] * len(grads)
        mus = (
            absent
            if state.mu is None
            else _tree.flatten_like(treedef, grads, state.mu, "the optimizer state")
        )
        scales = absent if state.mu_scale is None else treedef.flatten_up_to(state.mu_scale)
        if state.mu_scale is not None:
            _check_rows_whole(updates)
        count = jnp.asarray(optax.safe_increment(state.count))
        static, dynamic = _hyperparams.split(hyperparams)
        leaves = [
            _update_leaf(g, mu, scale, count, dynamic, static, wide)
            for g, mu, scale in zip(grads, mus, scales, strict=True)
        ]
        directions, mus, scales = zip(*leaves, strict=True) if leaves else ((), (), ())
        return treedef.unflatten(directions), ScaleBySignMomentumState(
            count=count,
            mu=None if state.mu is None else treedef.unflatten(mus),
            mu_scale=None if state.mu_scale is None else treedef.unflatten(scales),
        )

    return optax.GradientTransformationExtraArgs(init, update)  # type: ignore[arg-type]


def _canonical(name: str, dtype: Any) -> Any:
    """Return a storage dtype of sign momentum: a floating dtype, "int8", or None.

    Raises:
        ValueError: It is another.
    """
    if dtype is not None and jnp.dtype(dtype) == jnp.int8:
        return INT8
    return _dtypes.canonical_float(name, dtype)
