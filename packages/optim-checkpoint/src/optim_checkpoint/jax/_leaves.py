"""JAX leaves as stored bytes and back: dtype, weak type, key type and placement kept."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from optim_checkpoint._boxes import Region
from optim_checkpoint._collect import Collector, Staging
from optim_checkpoint._errors import (
    CorruptCheckpointError,
    IncompatibleCheckpointError,
    UnsupportedStateError,
    shown,
)
from optim_checkpoint._json import as_array
from optim_checkpoint._numpy import AnyArray, array_of, bytes_of, dtype_name
from optim_checkpoint._typed import Leaf, Typed, decode, encode

_NUMPY_DIMENSIONS = 64


def is_key(value: Any) -> bool:
    """Say whether a value is, or describes, an array of typed PRNG keys."""
    dtype = getattr(value, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)


def _check_array(value: jax.Array, path: str) -> None:
    if isinstance(value, Tracer):
        raise UnsupportedStateError(path, "is traced; save outside of jit, grad and vmap")
    if value.is_deleted():
        raise UnsupportedStateError(path, "was donated or deleted; save before the next step")
    if value.ndim > _NUMPY_DIMENSIONS:
        raise UnsupportedStateError(
            path, f"has {value.ndim} dimensions, the limit of NumPy is {_NUMPY_DIMENSIONS}"
        )


def _weak_zero(dtype: Any) -> bool | int | float | complex:
    return np.zeros((), dtype).item()


def encode_array(value: jax.Array, key: str, path: str, collector: Collector) -> Typed:
    """Add a JAX array to a save and return its typed leaf."""
    _check_array(value, path)
    if is_key(value):
        data = jax.random.key_data(value)
        stored = _store(data, key, "U32", collector)
        return {"prng": [str(jax.random.key_impl(value)), stored]}
    dtype = np.dtype(value.dtype)
    if value.weak_type and jnp.full((), _weak_zero(dtype)).dtype != dtype:
        raise UnsupportedStateError(path, f"is weakly typed {dtype}; make it strong with astype")
    stored = _store(value, key, dtype_name(dtype, path), collector)
    return {"weak" if value.weak_type else "array": stored}


def _store(value: jax.Array, key: str, dtype: str, collector: Collector) -> str:
    """Add an array, or of one that is spread over processes the shards that are here."""
    if value.is_fully_addressable or value.is_fully_replicated or value.size == 0:
        return collector.add(key, dtype, value.shape, lambda: bytes_of(np.asarray(value)))
    boxes: dict[tuple[int, ...], Any] = {}
    for shard in value.addressable_shards:
        offset = offset_of(shard.index)
        if shard.data.size and (offset not in boxes or shard.replica_id < boxes[offset].replica_id):
            boxes[offset] = shard
    return collector.add_shards(
        key,
        dtype,
        value.shape,
        [
            (
                offset,
                shard.data.shape,
                lambda data=shard.data: bytes_of(np.asarray(data)),
                shard.replica_id,
            )
            for offset, shard in boxes.items()
        ],
    )


def offset_of(index: tuple[slice, ...]) -> tuple[int, ...]:
    """Return where a shard starts."""
    return tuple(cut.start or 0 for cut in index)


def array_leaf(collector: Collector, prefix: str) -> Leaf:
    """Return an exact `encode` hook that stores JAX and NumPy arrays under `prefix`."""
    numpy_leaf = collector.numpy_leaf(prefix, exact=True)

    def leaf(value: object, path: str) -> Typed | None:
        if isinstance(value, jax.Array):
            return encode_array(value, f"{prefix}{path}", path, collector)
        return numpy_leaf(value, path)

    return leaf


def encode_leaf(value: Any, key: str, path: str, collector: Collector) -> Typed:
    """Write one leaf of a pytree: an array of any kind or a Python value."""
    if isinstance(value, jax.Array):
        return encode_array(value, key, path, collector)
    return collector.add_numpy(value, key, path) or encode(value, path)


class Pending:
    """A JAX leaf whose bytes the read has still to bring.

    Attributes:
        array: The memory, as NumPy sees it; for keys their uint32 words.
        weak: Whether the leaf is weakly typed.
        impl: For keys the name of their implementation.
        staged: The staging that reads it and its key there, where it may read a part only.
    """

    def __init__(
        self,
        array: AnyArray,
        *,
        weak: bool = False,
        impl: str | None = None,
        staged: tuple[Staging, str] | None = None,
    ) -> None:
        self.array = array
        self._staged = staged
        self._whole = False
        self.weak = weak
        self.impl = impl

    def describe(self) -> tuple[tuple[int, ...], str]:
        """Return shape and dtype as a template would show them."""
        if self.impl is None:
            return self.array.shape, self.array.dtype.name
        words = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0, impl=self.impl)))
        return self.array.shape[: self.array.ndim - words.ndim], f"key<{self.impl}>"

    def drop(self) -> None:
        """Read nothing of it: no leaf wants it."""
        if self._staged is not None:
            self._staged[0].memory.pop(self._staged[1], None)

    def narrow(self, template: Any) -> None:
        """Read only what this process will hold, where the template spans processes."""
        sharding = _sharding(template)
        if self._staged is None or self.impl is not None:
            return
        staging, key = self._staged
        shape, itemsize = self.array.shape, self.array.dtype.itemsize
        flat = self.array.reshape(-1).view(np.uint8)
        # A manifest may name one tensor for two leaves: what one of them wants whole stays whole.
        if not _spans(sharding):
            self._whole = True
            staging.memory.setdefault(key, memoryview(flat))
            return
        # Memory that is never written costs nothing.
        if not self._whole:
            staging.memory.pop(key, None)
        view = flat.reshape(*shape, itemsize)
        indices = sharding.addressable_devices_indices_map(shape).values()
        for offset, index in {offset_of(index): index for index in indices}.items():
            staging.want(key, Region(offset, view[index]))

    def value(self, template: Any = None) -> jax.Array:
        """Return the leaf, placed as the template is.

        Raises:
            IncompatibleCheckpointError: If it would lose bits, as 64-bit arrays do without x64.
        """
        sharding = _sharding(template)
        if self.impl is not None:
            result = jax.random.wrap_key_data(_spread(self.array, sharding), impl=self.impl)
            return result if _spans(sharding) else _place(result, template)
        if jax.dtypes.canonicalize_dtype(self.array.dtype) != self.array.dtype:
            raise IncompatibleCheckpointError(
                [f"an array is {self.array.dtype} in the checkpoint, which needs jax_enable_x64"]
            )
        if self.weak:
            if _spans(sharding):
                return jax.jit(_weak, out_shardings=sharding)(_spread(self.array, sharding))
            return _place(_weak(jnp.asarray(self.array)), template)
        if sharding is not None and not _spans(sharding):
            return jax.device_put(self.array, sharding)
        return _spread(self.array, sharding)


def _sharding(template: Any) -> Any:
    committed = getattr(template, "committed", True)
    return getattr(template, "sharding", None) if committed else None


def _weak(value: jax.Array) -> jax.Array:
    zeros = jnp.full(value.shape, _weak_zero(value.dtype))
    return zeros.at[...].set(value)


def _spans(sharding: Any) -> bool:
    return sharding is not None and not sharding.is_fully_addressable


def _spread(array: AnyArray, sharding: Any) -> jax.Array:
    """Return an array of which each process has its part, or else a local one."""
    if not _spans(sharding):
        # Unlike jnp.asarray it does not copy: nothing else holds the memory of the read.
        return jax.device_put(array)
    if isinstance(sharding, jax.sharding.NamedSharding):
        # The words of a key have a dimension more than the key.
        sharding = jax.sharding.NamedSharding(sharding.mesh, sharding.spec)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _place(value: jax.Array, template: Any) -> jax.Array:
    sharding = _sharding(template)
    return value if sharding is None else jax.device_put(value, sharding)


def _known_impl(name: str) -> bool:
    try:
        jax.random.key(0, impl=name)
    except (ValueError, TypeError, KeyError):
        return False
    return True


def pending_leaf(staging: Staging) -> Any:
    """Return a `decode` hook for what `encode_leaf` and `array_leaf` wrote."""
    made: dict[str, Pending] = {}

    def pending(key: object, *, weak: bool = False, impl: str | None = None) -> Pending:
        info = staging.info(key)
        name = str(key)
        if name not in made:
            if impl is not None and info.dtype != "U32":
                raise CorruptCheckpointError(staging.file, "keys are not uint32", tensor=name)
            array, memory = array_of(info, staging.file, name)
            staging.claim(name, memory)
            made[name] = Pending(array, weak=weak, impl=impl, staged=(staging, name))
        return made[name]

    def leaf(tag: str, content: object) -> object:
        if tag in ("array", "weak"):
            return pending(content, weak=tag == "weak")
        pair = as_array(content)
        if tag == "prng" and pair is not None and len(pair) == 2 and isinstance(pair[0], str):
            if not _known_impl(pair[0]):
                raise IncompatibleCheckpointError(
                    [f"{shown(pair[0])} is no PRNG implementation of this JAX: register it first"]
                )
            return pending(pair[1], impl=pair[0])
        return staging.numpy_leaf(tag, content)

    return leaf


def decode_leaf(typed: object, staging: Staging, leaf: Any) -> Any:
    """Decode a typed value with JAX leaves in it; they come as `Pending`."""
    return decode(typed, staging.file, leaf)


def settle_jax(value: Any) -> Any:
    """Replace every `Pending` in plain containers by its array; lists and dicts stay the same."""
    return _settle(value, {})


def _settle(value: Any, done: dict[int, Any]) -> Any:
    if isinstance(value, Pending):
        return value.value()
    if not isinstance(value, list | tuple | dict):
        return value
    # What is in two places is visited once, or a small file could take for ever.
    if id(value) not in done:
        done[id(value)] = value
        if isinstance(value, list):
            value[:] = [_settle(item, done) for item in value]
        elif isinstance(value, dict):
            for key, item in value.items():
                value[key] = _settle(item, done)
        else:
            done[id(value)] = tuple(_settle(item, done) for item in value)
    return done[id(value)]
