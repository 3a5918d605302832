"""What the values of a notebook are, as text: a run of other numbers must not answer for these."""

import hashlib
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np


def values_text(value: Any) -> str:
    """Return a text that tells a value from every other one, empty for what is not known.

    An array of NumPy, JAX or PyTorch counts by its dtype, shape and bytes; of what a collection
    holds, the known values count, in order (sets have none).

    Raises:
        ValueError: an array has no bytes that say what it holds, such as one of Python objects.

    Example:
        >>> values_text([1, np.zeros(2, np.float32)])
        'list[1,float32(2,)af5570f5a1810b7a]'
    """
    if isinstance(value, (bool, int, float, complex, str, bytes, type(None))):
        return repr(value)
    kind = type(value).__qualname__
    if isinstance(value, Mapping):
        pairs = (f"{values_text(k)}:{values_text(v)}" for k, v in value.items())
        return f"{kind}[{','.join(pairs)}]"
    if isinstance(value, (list, tuple)):
        return f"{kind}[{','.join(map(values_text, value))}]"
    if isinstance(value, (set, frozenset)):
        return f"{kind}[{','.join(sorted(map(values_text, value)))}]"
    return _array_text(value)


def _array_text(value: Any) -> str:
    # Whoever made an array of JAX or PyTorch has imported it.
    jax, torch = sys.modules.get("jax"), sys.modules.get("torch")
    try:
        if torch is not None and isinstance(value, torch.Tensor):
            flat = value.detach().cpu().contiguous().reshape(-1)
            content = flat.view(torch.uint8).numpy().tobytes()
        elif jax is not None and isinstance(value, jax.Array):
            keys = jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key)
            content = np.asarray(jax.random.key_data(value) if keys else value).tobytes()
        elif isinstance(value, (np.ndarray, np.generic)):
            if value.dtype.hasobject:
                raise TypeError("it holds Python objects")
            content = value.tobytes()
        else:
            return ""
    except (TypeError, RuntimeError, NotImplementedError) as error:
        raise ValueError(
            f"an array of a notebook ({type(value).__name__}, {value.dtype}) cannot be told from "
            f"another one, and its runs not from those of that ({error}); make it in a file"
        ) from None
    digest = hashlib.sha256(content).hexdigest()[:16]
    return f"{value.dtype}{tuple(value.shape)}{digest}"
