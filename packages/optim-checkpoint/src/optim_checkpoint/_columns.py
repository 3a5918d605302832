# pyright: strict
"""Long lists of one type as arrays: an order of ten million samples is data, not text.

As typed JSON a number takes some twenty bytes and, while it is parsed, three hundred.
"""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from optim_checkpoint._errors import UnsupportedStateError
from optim_checkpoint._numpy import AnyArray

# What a reader has to know where a list was stored so.
COLUMNS = "columns"
# A shorter list stays legible in the manifest, and readers that lack COLUMNS can read it.
LONG = 4096
_NUMBERS: dict[type, tuple[str, ...]] = {
    bool: ("bool",),
    float: ("float64",),
    int: ("int64", "uint64"),
}


def pack(items: Sequence[object], path: str) -> list[AnyArray] | None:
    """Return the arrays that hold a long list of numbers or texts of one type, or None.

    Numbers take one array; texts take one of their bytes in UTF-8 and one of their lengths.

    Raises:
        UnsupportedStateError: For a text that is not Unicode.
    """
    if len(items) < LONG:
        return None
    kinds = set(map(type, items))
    kind = kinds.pop()
    if kinds:
        return None
    if kind is str:
        return _pack_texts(cast("Sequence[str]", items), path)
    for dtype in _NUMBERS.get(kind, ()):
        try:
            return [np.array(items, np.dtype(dtype))]
        except OverflowError:
            continue
    return None


def _pack_texts(items: Sequence[str], path: str) -> list[AnyArray]:
    encoded: list[bytes] = []
    for i, text in enumerate(items):
        try:
            encoded.append(text.encode("utf-8"))
        except UnicodeEncodeError:
            raise UnsupportedStateError(f"{path}[{i}]", "the text is not Unicode") from None
    lengths = np.array([len(text) for text in encoded], np.int64)
    return [np.asarray(memoryview(b"".join(encoded))), lengths]


def unpack(arrays: Sequence[AnyArray]) -> list[Any] | None:
    """Return the list that `pack` stored, or None if these are not such arrays."""
    if any(array.ndim != 1 for array in arrays):
        return None
    names = tuple(array.dtype.name for array in arrays)
    if names == ("uint8", "int64"):
        return _unpack_texts(arrays[0].tobytes(), cast("list[int]", arrays[1].tolist()))
    if len(names) == 1 and any(names[0] in dtypes for dtypes in _NUMBERS.values()):
        array = arrays[0]
        # The bits of a stored bool may be any; those of Python's are two objects.
        return cast(
            "list[Any]", (array.view(np.uint8) != 0 if array.dtype == bool else array).tolist()
        )
    return None


def _unpack_texts(raw: bytes, lengths: list[int]) -> list[str] | None:
    if sum(lengths) != len(raw) or min(lengths, default=0) < 0:
        return None
    texts: list[str] = []
    start = 0
    try:
        for length in lengths:
            texts.append(raw[start : start + length].decode("utf-8"))
            start += length
    except UnicodeDecodeError:
        return None
    return texts
