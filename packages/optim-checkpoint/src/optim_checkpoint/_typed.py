# pyright: strict
"""Python values as JSON that says their type.

JSON has one kind of number, no tuples and only string keys; a scheduler that holds ``inf``, a betas
tuple or a dict with integer keys would not come back as it was. So every value is written as an
object with one key, its type. Floats are hexadecimal, hence exact. Nothing else can be stored:
there is no escape into pickle.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import cast

from optim_checkpoint._errors import CorruptCheckpointError, UnsupportedStateError, shown
from optim_checkpoint._json import as_array, as_object

Typed = dict[str, object]
Leaf = Callable[[object, str], Typed | None]
TypedLeaf = Callable[[str, object], object]
MAX_DEPTH = 60
_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,4000})\Z", re.ASCII)
_FLOAT = re.compile(r"-?(0x[01]\.[0-9a-f]+p[+-][0-9]+|inf)\Z|nan\Z", re.ASCII)


def encode_float(value: float) -> str:
    """Spell a float exactly: hexadecimal, ``inf``, ``-inf`` or ``nan``.

    >>> encode_float(0.1), encode_float(float("-inf"))
    ('0x1.999999999999ap-4', '-inf')
    """
    if math.isnan(value):
        return "nan"
    return value.hex() if math.isfinite(value) else ("inf" if value > 0 else "-inf")


def encode(value: object, path: str, leaf: Leaf | None = None, depth: int = 0) -> Typed:
    """Write a value as typed JSON.

    Args:
        value: None, bool, int, float, complex, str, bytes, or a tuple, list or dict of such.
        path: Where it is, for errors.
        leaf: Asked first about every value; a framework returns its own object for arrays.
        depth: How deep in the whole this value is.

    Returns:
        An object with exactly one key.

    Raises:
        UnsupportedStateError: For any other type (subclasses included: their class would be lost;
            only one of dict is stored, as the dict it is), for text that is not Unicode and for
            nesting beyond `MAX_DEPTH`.
    """
    if depth > MAX_DEPTH:
        raise UnsupportedStateError(path, f"is nested more than {MAX_DEPTH} deep")
    if leaf is not None:
        own = leaf(value, path)
        if own is not None:
            return own
    kind = type(value)
    if value is None:
        return {"none": 1}
    if kind is bool:
        return {"bool": value}
    if kind is int:
        return _integer(cast("int", value), path)
    if kind is float:
        return {"float": encode_float(cast("float", value))}
    if kind is complex:
        number = cast("complex", value)
        return {"complex": [encode_float(number.real), encode_float(number.imag)]}
    if kind is str:
        return {"str": _text(cast("str", value), path)}
    if kind is bytes:
        return {"bytes": cast("bytes", value).hex()}
    if kind in (list, tuple):
        items = cast("list[object] | tuple[object, ...]", value)
        listed = [encode(v, f"{path}[{i}]", leaf, depth + 1) for i, v in enumerate(items)]
        return {kind.__name__: listed}
    # A Counter, OrderedDict or defaultdict of a scheduler is stored as the dict it is.
    if isinstance(value, dict):
        return _dict(cast("dict[object, object]", value), path, leaf, depth)
    raise UnsupportedStateError(
        path,
        f"a {kind.__module__}.{kind.__qualname__} cannot be stored; convert it to numbers, text, "
        "lists, tuples, dicts or arrays first",
    )


def _integer(value: int, path: str) -> Typed:
    if value.bit_length() > 4096 * 3:
        raise UnsupportedStateError(path, "an integer of more than 12288 bits cannot be stored")
    return {"int": str(value)}


def _text(value: str, path: str) -> str:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise UnsupportedStateError(path, f"the text {shown(value)} is not Unicode") from None
    return value


def _dict(value: Mapping[object, object], path: str, leaf: Leaf | None, depth: int) -> Typed:
    pairs: list[object] = []
    for key, item in value.items():
        where = f"{path}[{shown(key)}]"
        if type(key) not in (str, int, bool, float, tuple, type(None), bytes):
            raise UnsupportedStateError(where, f"a key of type {type(key).__name__} is not stored")
        pairs.append([encode(key, where, None, depth + 1), encode(item, where, leaf, depth + 1)])
    return {"dict": pairs}


def decode(typed: object, file: str, leaf: TypedLeaf | None = None, depth: int = 0) -> object:
    """Read back what `encode` wrote.

    Args:
        typed: The JSON value.
        file: What to call its file in an error.
        leaf: Called with the tag and content of every tag this module does not know.
        depth: How deep in the whole this value is.

    Returns:
        The value, equal in type and bits.

    Raises:
        CorruptCheckpointError: For anything that `encode` does not write.
    """
    if depth > MAX_DEPTH:
        raise CorruptCheckpointError(file, f"a value is nested more than {MAX_DEPTH} deep")
    fields = as_object(typed)
    if fields is None or len(fields) != 1:
        raise CorruptCheckpointError(file, f"{shown(typed)} is not a typed value")
    ((tag, content),) = fields.items()
    if tag == "none" and content == 1:
        return None
    if tag == "bool" and isinstance(content, bool):
        return content
    if tag == "int" and isinstance(content, str) and _INTEGER.match(content):
        return int(content)
    if tag == "float" and isinstance(content, str) and _FLOAT.match(content):
        return _float(content, file)
    if tag == "str" and isinstance(content, str):
        return content
    if tag == "bytes" and isinstance(content, str) and re.fullmatch(r"([0-9a-f]{2})*", content):
        return bytes.fromhex(content)
    items = as_array(content)
    if items is not None:
        return _decode_list(tag, items, file, leaf, depth)
    if leaf is not None and tag not in _OWN:
        return leaf(tag, content)
    raise CorruptCheckpointError(file, f"{shown(typed)} is not a typed value")


_OWN = {"none", "bool", "int", "float", "complex", "str", "bytes", "list", "tuple", "dict"}


def _float(text: str, file: str) -> float:
    try:
        return float.fromhex(text)
    except (OverflowError, ValueError):
        raise CorruptCheckpointError(file, f"{shown(text)} is not a double") from None


def _decode_list(
    tag: str, content: list[object], file: str, leaf: TypedLeaf | None, depth: int
) -> object:
    if tag in ("list", "tuple"):
        items = [decode(item, file, leaf, depth + 1) for item in content]
        return items if tag == "list" else tuple(items)
    if tag == "complex" and len(content) == 2:
        parts = [item for item in content if isinstance(item, str) and _FLOAT.match(item)]
        if len(parts) == 2:
            return complex(_float(parts[0], file), _float(parts[1], file))
    if tag == "dict":
        result: dict[object, object] = {}
        for pair in content:
            both = as_array(pair)
            if both is None or len(both) != 2:
                raise CorruptCheckpointError(file, f"{shown(pair)} is not a key and a value")
            first, second = both
            key = decode(first, file, None, depth + 1)
            try:
                twice = key in result
            except TypeError:
                raise CorruptCheckpointError(file, f"{shown(key)} cannot be a key") from None
            if twice:
                raise CorruptCheckpointError(file, f"the key {shown(key)} occurs twice")
            result[key] = decode(second, file, leaf, depth + 1)
        return result
    if leaf is not None and tag not in _OWN:
        return leaf(tag, content)
    raise CorruptCheckpointError(file, f"{shown({tag: content})} is not a typed value")
