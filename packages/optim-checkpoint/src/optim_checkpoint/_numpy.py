# pyright: strict
"""NumPy dtypes as safetensors dtypes; bfloat16 and float8 where ml_dtypes is there."""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from optim_checkpoint._errors import (
    CorruptCheckpointError,
    IncompatibleCheckpointError,
    UnsupportedStateError,
    shown,
)
from optim_checkpoint._header import ALIGNMENT, TensorInfo

AnyArray = npt.NDArray[Any]
_NAMES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "float16": "F16",
    "bfloat16": "BF16",
    "uint32": "U32",
    "int32": "I32",
    "float32": "F32",
    "uint64": "U64",
    "int64": "I64",
    "float64": "F64",
    "complex64": "C64",
    "float8_e5m2": "F8_E5M2",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e8m0fnu": "F8_E8M0",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
}
_BY_NAME = {stored: name for name, stored in _NAMES.items()}
_EXTENDED = {name for name in _NAMES if name == "bfloat16" or name.startswith("float8")}


def stored_name(name: str) -> str | None:
    """Return the safetensors name of a NumPy dtype of this name, if there is one.

    >>> stored_name("float32"), stored_name("int4")
    ('F32', None)
    """
    return _NAMES.get(name)


def dtype_name(dtype: np.dtype[Any], path: str) -> str:
    """Return the safetensors name of a NumPy dtype.

    Raises:
        UnsupportedStateError: For a dtype that the format does not have, in this byte order or any.
    """
    name = _NAMES.get(dtype.name)
    if name is not None and dtype != dtype.newbyteorder("<"):
        raise UnsupportedStateError(
            path, f"dtype {dtype.str} is big-endian and would come back little-endian; convert it"
        )
    if name is None or dtype.names is not None:
        raise UnsupportedStateError(
            path, f"dtype {dtype} has no equivalent in safetensors; convert it before saving"
        )
    return name


def bytes_of(array: AnyArray) -> memoryview:
    """Return the bytes of an array, little-endian in C order, without a copy where it can."""
    little = array.dtype.newbyteorder("<")
    plain = np.ascontiguousarray(array, dtype=little).reshape(-1)
    return memoryview(plain.view(np.uint8))


def axis_order(strides: Sequence[int], shape: Sequence[int]) -> tuple[int, ...]:
    """Return the axes from the outermost in memory to the innermost; (0, 1, ...) is C order.

    >>> axis_order((4, 8), (2, 3))
    (1, 0)
    """
    # Elements that are one in memory have no order, and an axis of one element has no stride.
    if any(size > 1 and stride == 0 for stride, size in zip(strides, shape, strict=True)):
        return tuple(range(len(shape)))
    order = [axis for axis, size in enumerate(shape) if size != 1]
    moved = iter(sorted(order, key=lambda axis: -abs(strides[axis])))
    return tuple(axis if size == 1 else next(moved) for axis, size in enumerate(shape))


def invert(order: Sequence[int]) -> tuple[int, ...]:
    """Return the order that undoes one."""
    return tuple(sorted(range(len(order)), key=order.__getitem__))


def is_order(value: Sequence[object], rank: int) -> bool:
    """Say whether a value from a file is an order of `rank` axes."""
    return all(type(axis) is int for axis in value) and set(value) == set(range(rank))


def copy_bytes(target: memoryview, source: memoryview) -> None:
    """Copy bytes without the GIL, which a memoryview would hold."""
    np.asarray(target)[:] = np.asarray(source)


def array_of(info: TensorInfo, file: str, key: str) -> tuple[AnyArray, memoryview]:
    """Return a new array of a stored dtype and shape, and its memory to read into."""
    name = _BY_NAME[info.dtype]
    if name in _EXTENDED and "ml_dtypes" not in sys.modules:
        # Not damage: a sound generation must not be passed over for an older one.
        raise IncompatibleCheckpointError(
            [f"{key} is {name}, which is a NumPy array only after `import ml_dtypes`"]
        )
    # At a multiple of 64 JAX takes memory over; elsewhere it copies into pages of its own.
    memory = np.empty(info.nbytes + ALIGNMENT, np.uint8)
    flat = memory[-memory.ctypes.data % ALIGNMENT :][: info.nbytes]
    try:
        array = flat.view(np.dtype(name)).reshape(info.shape)
    except ValueError as error:
        raise CorruptCheckpointError(
            file, f"shape {list(info.shape)} cannot be a NumPy array: {shown(str(error))}"
        ) from None
    return array, memoryview(flat)
