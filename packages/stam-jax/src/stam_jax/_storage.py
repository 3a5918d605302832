"""How moments are stored: in a floating dtype, or in a code of ``stam_core.int8`` or ``int4``.

Codes have scales beside them, in the field of the state that is called as the moment with
``_scale``. XLA merges a product with the sum that it goes into, and 1/sqrt(x) with an approximation
of it, so for codes each such operation is kept apart: they have then the same bits as in PyTorch.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from stam_core import AS_WRITTEN, Exact, Moment, int4, int8

from stam_jax import _dtypes, _tree

INT8, INT4 = "int8", "int4"
_CODES = {INT8: int8, INT4: int4}
_WORDS = {4: jnp.uint32, 8: jnp.uint64}


class Coded(NamedTuple):
    """The moment of a leaf in a code: codes and scales, each in as many dimensions as the leaf.

    8-bit codes have the shape of the leaf, int8 or of squares uint8; 4-bit ones are uint8 of
    ``(rows, 1, ..., pairs)``.
    """

    codes: jax.Array
    scale: jax.Array


Stored: TypeAlias = jax.Array | Coded


def canonical(name: str, dtype: Any, *, codes: Sequence[str] = (INT8,)) -> Any:
    """Return a storage dtype that may be a code: a floating dtype, the name of a code, or None.

    Raises:
        ValueError: It is another.
    """
    for code in codes:
        # A string, because not every release of NumPy and JAX knows a dtype of 4 bits.
        if dtype is not None and str(getattr(dtype, "__name__", dtype)) == code:
            return code
    try:
        return _dtypes.canonical_float(name, dtype)
    except ValueError as error:
        raise ValueError(f"{error}; or a code, {' or '.join(map(repr, codes))}") from error


def start(moment: Moment, requested: Any, params: Any) -> dict[str, Any]:
    """Return the fields of a state that hold a moment before the first step.

    Args:
        moment: The moment.
        requested: A storage dtype of :func:`canonical`.
        params: The parameters.

    Raises:
        ValueError: A row of a moment in a code would be cut, or its size is not known.
    """
    code = requested if requested in _CODES else None

    def zeros(leaf: Any) -> jax.Array:
        if code == INT4 and is_coded(leaf):
            pairs = int4.packed_shape(jnp.shape(leaf))[1]
            return jnp.zeros(_with_rows(jnp.shape(leaf), pairs), jnp.uint8)
        if code and is_coded(leaf):
            return jnp.zeros_like(leaf, dtype=jnp.uint8 if moment.square else jnp.int8)
        wanted = jnp.float32 if code else requested
        own = _dtypes.slot_dtype(moment, wanted, _dtypes.dtype_of(leaf))
        return jnp.zeros_like(leaf, dtype=own)

    def scales(leaf: Any) -> jax.Array:
        shape = jnp.shape(leaf)
        if is_coded(leaf):
            blocks = _CODES[requested].scale_shape(shape)[1]
            return jnp.zeros(_with_rows(shape, blocks), jnp.float32)
        # Nothing, in as many dimensions: any sharding of the parameter divides it.
        return jnp.zeros((0,) * len(shape), jnp.float32) if shape else jnp.zeros((0,), jnp.float32)

    if not code:
        return {moment.name: jax.tree.map(zeros, params)}
    check_rows_whole(params, code)
    fields = {moment.name: zeros, f"{moment.name}_scale": scales}
    return {name: jax.tree.map(make, params) for name, make in fields.items()}


def leaves_of(state: Any, name: str, treedef: Any, grads: Sequence[jax.Array]) -> list[Stored]:
    """Return a moment of a state, leaf by leaf in the order of the gradients.

    Raises:
        ValueError: The state has other leaves, or a row of a moment in a code would be cut.
    """
    arrays = _tree.flatten_like(
        treedef, grads, getattr(state, name), "the optimizer state", _shape_of
    )
    scales = getattr(state, f"{name}_scale", None)
    if scales is None:
        return arrays
    check_rows_whole(treedef.unflatten(grads), "int8 or int4")
    pairs = zip(arrays, treedef.flatten_up_to(scales), strict=True)
    # Where the moment is not in a code, its scale is empty.
    return [Coded(x, scale) if x.dtype in (jnp.int8, jnp.uint8) else x for x, scale in pairs]


def _shape_of(leaf: Any, stored: Any) -> tuple[int, ...]:
    """Return the shape in which the moment of a leaf is stored."""
    shape = jnp.shape(leaf)
    if jnp.shape(stored) == shape or _dtypes.dtype_of(stored) != jnp.uint8 or not is_coded(leaf):
        return shape
    return _with_rows(shape, int4.packed_shape(shape)[1])


def fields_of(state: Any, name: str, treedef: Any, leaves: Sequence[Stored]) -> dict[str, Any]:
    """Return the fields of the new state that hold a moment."""
    arrays = [x.codes if isinstance(x, Coded) else x for x in leaves]
    fields = {name: treedef.unflatten(arrays)}
    old = getattr(state, f"{name}_scale", None)
    if old is not None:
        pairs = zip(leaves, treedef.flatten_up_to(old), strict=True)
        scales = [x.scale if isinstance(x, Coded) else empty for x, empty in pairs]
        fields[f"{name}_scale"] = treedef.unflatten(scales)
    return fields


def draws_noise(x: Stored) -> bool:
    """Tell whether a moment is rounded stochastically."""
    return isinstance(x, Coded) and x.codes.dtype == jnp.uint8


def load(x: Stored, shape: tuple[int, ...], dtype: Any, exact: Exact) -> jax.Array:
    """Return the stored moment of a leaf of a shape in the dtype of the arithmetic."""
    if not isinstance(x, Coded):
        return x.astype(dtype)
    if x.codes.shape == shape:
        decode = int8.decode_squares if draws_noise(x) else int8.decode
        flat = x.scale.reshape(int8.scale_shape(shape))
        return decode(x.codes, flat, xp=jnp, exact=exact).astype(dtype)
    packed, flat = (
        x.codes.reshape(int4.packed_shape(shape)),
        x.scale.reshape(int4.scale_shape(shape)),
    )
    return int4.decode(packed, flat, shape, xp=jnp, exact=exact).astype(dtype)


def store(x: jax.Array, like: Stored, exact: Exact, noise: jax.Array | None) -> Stored:
    """Return a moment as another is stored; a finite one stays finite.

    Args:
        x: The moment.
        like: The other one.
        exact: How to keep operations apart.
        noise: 16 random bits for each entry, where :func:`draws_noise` asks for them.
    """
    if not isinstance(like, Coded):
        return _dtypes.stored(x, like.dtype)
    x = x.astype(jnp.float32)
    if draws_noise(like):
        encode = int8.encode_squares if like.codes.shape == x.shape else int4.encode
        codes, flat = encode(x, noise, xp=jnp, exact=exact)
    else:
        codes, flat = int8.encode(x, xp=jnp, exact=exact)
    return Coded(codes.reshape(like.codes.shape), flat.reshape(like.scale.shape))


def exact_for(moments: Any, count: jax.Array) -> Exact:
    """Return the operations of a leaf's step: kept as they are written where a moment is coded.

    XLA removes barriers and conversions that change nothing before code is made, and the code
    maker then merges a product with a sum, and divides by a number that many entries share by
    multiplying with its reciprocal. An exclusive or with bits that are 0, but are not known to be,
    stays.

    Args:
        moments: The stored moments of the leaf, by name.
        count: A step count, known to the program only when it runs; never negative.
    """
    if not any(isinstance(x, Coded) for x in moments.values()):
        return AS_WRITTEN
    negative = count < 0

    def bits(x: jax.Array) -> jax.Array:
        return lax.bitcast_convert_type(x, _WORDS[x.dtype.itemsize])

    def keep(x: jax.Array) -> jax.Array:
        return lax.bitcast_convert_type(bits(x) ^ negative.astype(bits(x).dtype), x.dtype)

    def divide(x: jax.Array, y: jax.Array) -> jax.Array:
        # Bits of x, so that the divisor of no two entries is known to be the same.
        zero = jnp.where(negative, bits(x), 0)
        return keep(x / lax.bitcast_convert_type(bits(y) ^ zero, y.dtype))

    return Exact(keep, divide)


def is_coded(leaf: Any) -> bool:
    """Tell whether the moment of a leaf is stored in a code where one is asked for."""
    return not _dtypes.is_complex(_dtypes.dtype_of(leaf)) and int8.has_code(jnp.shape(leaf))


def check_rows_whole(tree: Any, code: str) -> None:
    """Raise where a row of a moment in a code would be cut, and shardings are part of the types.

    With automatic axes the compiler puts the pieces of a row together.

    Raises:
        ValueError: One would be, or a size is not known; the message names the leaf.
    """
    for name, leaf in zip(_tree.leaf_names(tree), jax.tree.leaves(tree), strict=True):
        if not all(isinstance(length, int) for length in jnp.shape(leaf)):
            msg = (
                f"leaf {name!r} has the symbolic shape {jnp.shape(leaf)}, and its size decides "
                f'whether its moment is stored in {code}: take "bfloat16", or export for fixed '
                "shapes"
            )
            raise ValueError(msg)
        spec = _explicit_spec(leaf) if is_coded(leaf) else ()
        if any(part is not None for part in spec[1:]):
            msg = (
                f"leaf {name!r} is sharded as {spec} on a mesh with explicit axes, and blocks of "
                f"a moment in {code} lie along its rows: shard it along dimension 0, or take "
                '"bfloat16"'
            )
            raise ValueError(msg)


def _explicit_spec(leaf: Any) -> Any:
    # Explicit axes came after the oldest JAX, and a NumPy array has no sharding.
    if not hasattr(jax.sharding, "auto_axes") or not isinstance(leaf, jax.Array):
        return ()
    return jax.typeof(leaf).sharding.spec


def _with_rows(shape: tuple[int, ...], columns: int) -> tuple[int, ...]:
    """Return a shape with the rows of a leaf, in as many dimensions, and so many columns."""
    return (shape[0], *[1] * (len(shape) - 2), columns)
