"""Which dtype each buffer is stored in, and which one the arithmetic uses."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from stam_core import Moment

REAL_OF = {
    jnp.dtype("complex64"): jnp.dtype("float32"),
    jnp.dtype("complex128"): jnp.dtype("float64"),
}
COMPLEX_OF = {real: complex_ for complex_, real in REAL_OF.items()}


def dtype_of(leaf: Any) -> np.dtype:
    """Return the dtype that JAX gives an array, a shape-and-dtype record, or a Python number.

    NumPy's float64 is float32 there unless 64 bits are switched on.
    """
    if not hasattr(leaf, "dtype"):
        return jnp.result_type(leaf)
    return jax.dtypes.canonicalize_dtype(jnp.dtype(leaf.dtype))


def is_complex(dtype: Any) -> bool:
    """Tell whether ``dtype`` is complex."""
    return jnp.dtype(dtype) in REAL_OF


def real_dtype(dtype: Any) -> np.dtype:
    """Return the dtype of the real part."""
    return REAL_OF.get(jnp.dtype(dtype), jnp.dtype(dtype))


def is_narrow(dtype: Any) -> bool:
    """Tell whether ``dtype`` is a float of 8 bits or fewer, which JAX does not promote."""
    return jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits <= 8


def at_least_float32(dtype: Any) -> np.dtype:
    """Return the real dtype in which statistics of such a leaf are kept: float32, or float64."""
    return jnp.dtype(jnp.float32) if is_narrow(dtype) else promote(real_dtype(dtype), jnp.float32)


def promote(*dtypes: Any) -> np.dtype:
    """Return the dtype of a result of several, float32 in the place of those of 8 bits or fewer."""
    wide = [jnp.dtype(jnp.float32 if is_narrow(dtype) else dtype) for dtype in dtypes]
    return functools.reduce(jnp.promote_types, wide)


def compute_dtype(dtype: Any) -> np.dtype:
    """Return the dtype of the arithmetic on such a leaf: at least float32, complex where it is."""
    real = at_least_float32(dtype)
    return COMPLEX_OF[real] if is_complex(dtype) else real


def slot_dtype(moment: Moment, requested: Any, leaf_dtype: Any) -> np.dtype:
    """Return the storage dtype of a moment.

    A complex leaf keeps complex moments, unless they are magnitudes: of the requested precision
    where a complex dtype has it, complex64 for 16-bit requests. A leaf of 8 bits or fewer, which
    could hold no average, gets float32 if nothing is requested.
    """
    own = real_dtype(leaf_dtype) if moment.real else jnp.dtype(leaf_dtype)
    if requested is None:
        return compute_dtype(own) if moment.wide or is_narrow(own) else own
    if is_complex(own) and not is_complex(requested):
        return COMPLEX_OF[at_least_float32(requested)]
    return jnp.dtype(requested)


def like(dtype: Any, real: Any) -> np.dtype:
    """Return a real dtype, or the complex dtype of its precision where ``dtype`` is complex."""
    return COMPLEX_OF[jnp.dtype(real)] if is_complex(dtype) else jnp.dtype(real)


def statistics_dtype(params: Any) -> np.dtype:
    """Return the dtype of packed statistics: float64 if any leaf has that precision, or float32."""
    leaves = jax.tree.leaves(params)
    double = any(at_least_float32(dtype_of(leaf)) == jnp.float64 for leaf in leaves)
    return jnp.dtype(jnp.float64 if double else jnp.float32)


def canonical_float(name: str, dtype: Any) -> np.dtype | None:
    """Return ``dtype`` as a dtype object; None stays None.

    Raises:
        ValueError: It is not a floating dtype.
    """
    if dtype is None:
        return None
    try:
        resolved = jnp.dtype(dtype)
    except TypeError as error:
        msg = f"{name} must be a floating dtype or None, got {dtype!r}, which is no dtype"
        raise ValueError(msg) from error
    if not jnp.issubdtype(resolved, jnp.floating):
        msg = (
            f"{name} must be a floating dtype or None, got {resolved.name}: for example 'bfloat16'"
        )
        raise ValueError(msg)
    return resolved


def stored(x: jax.Array, dtype: Any) -> jax.Array:
    """Round to a storage dtype; what is finite and too large for it is its largest value there."""
    if not is_complex(dtype):
        largest = float(jnp.finfo(dtype).max)
        if largest < float(jnp.finfo(x.dtype).max):
            x = jnp.where(jnp.isfinite(x), jnp.clip(x, -largest, largest), x)
    return x.astype(dtype)
