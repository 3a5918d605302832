# pyright: strict
"""Python values as JSON that says their type.

JSON has one kind of number, no tuples and only string keys; a scheduler that holds ``inf``, a betas
tuple or a dict with integer keys would not come back as it was. So every value is written as an
object with one key, its type. Floats are hexadecimal, hence exact. Nothing else can be stored:
there is no escape into pickle.
"""

import math
import re
from collections.abc import Callable
from typing import cast

from optim_checkpoint._classes import CLASSES, class_of, make
from optim_checkpoint._columns import LONG
from optim_checkpoint._errors import CorruptCheckpointError, UnsupportedStateError, shown
from optim_checkpoint._json import as_array, as_object

Typed = dict[str, object]
Leaf = Callable[[object, str], Typed | None]
TypedLeaf = Callable[[str, object], object]
MAX_DEPTH = 60
# What a reader has to know where `encode_exact` kept more than the values.
EXACT = "exact"
_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,4000})\Z", re.ASCII)
_FLOAT = re.compile(r"-?(0x[01]\.[0-9a-f]+p[+-][0-9]+|inf)\Z|nan\Z", re.ASCII)
_KEYS = (str, int, bool, float, tuple, type(None), bytes)
_OWN = {
    *("none", "bool", "int", "float", "complex", "str", "bytes", "list", "tuple", "dict"),
    *("table", "same", *CLASSES),
}


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
        An object with exactly one key, which `decode` accepts.

    Raises:
        UnsupportedStateError: For any other type (subclasses included: their class would be lost;
            only one of dict is stored, as the dict it is: what it is loaded into has the class),
            for text that is not Unicode and for nesting beyond `MAX_DEPTH`.
    """
    return _accepted(_Encoder(leaf).encode(value, path, depth), path, depth)


def encode_exact(value: object, path: str, leaf: Leaf, features: set[str]) -> Typed:
    """Write a value that nothing live will give its classes back to.

    Differs from `encode` in:
    1. an OrderedDict, Counter or defaultdict keeps its class, another subclass of dict is refused;
    2. a list or dict that is in two places comes back as one;
    3. `EXACT` is added to `features` where the reader has to know either.
    """
    encoder = _Encoder(leaf, features)
    return _accepted(encoder.encode(value, path, 0), path, 0)


def _accepted(typed: Typed, path: str, depth: int) -> Typed:
    """Return what was encoded if the reader takes it: its limits are asked, not repeated."""

    def counted(tag: str, content: object) -> object:
        items = as_array(content)
        return range(cast("int", items[1])) if tag == "column" and items else None

    try:
        _Decoder(path, counted).decode(typed, depth)
    except CorruptCheckpointError as error:
        raise UnsupportedStateError(path, f"cannot be read back: {error.detail}") from None
    return typed


class _Encoder:
    def __init__(self, leaf: Leaf | None, features: set[str] | None = None) -> None:
        self._leaf = leaf
        self._features = features
        # Which list or dict has which number; ids count only while the object lives.
        self._numbers: dict[int, int] = {}
        self._kept: list[object] = []

    def encode(self, value: object, path: str, depth: int) -> Typed:
        if depth > MAX_DEPTH:
            raise UnsupportedStateError(path, f"is nested more than {MAX_DEPTH} deep")
        kind = cast("type", type(value))
        if self._features is not None and (kind is list or issubclass(kind, dict)):
            number = self._numbers.setdefault(id(value), len(self._numbers))
            if number < len(self._kept):
                self._features.add(EXACT)
                return {"same": number}
            self._kept.append(value)
        own = None if self._leaf is None else self._leaf(value, path)
        if own is not None:
            return own
        if kind in (list, tuple):
            items = cast("list[object] | tuple[object, ...]", value)
            listed = [self.encode(v, f"{path}[{i}]", depth + 1) for i, v in enumerate(items)]
            return {kind.__name__: listed}
        if isinstance(value, dict):
            return self._dict(cast("dict[object, object]", value), path, depth)
        return _scalar(value, path)

    def _dict(self, value: dict[object, object], path: str, depth: int) -> Typed:
        if self._features is None or type(value) is dict:
            keys = None
            if len(value) >= LONG and self._leaf is not None:
                keys = self._leaf(list(value), path)
            if keys is None:
                return {"dict": self._pairs(value, path, depth)}
            items = list(value.values())
            # Not an object of the user: it must live for its number to stay its own.
            return {"table": [keys, self.encode(items, path, depth + 1)]}
        name, factory, attributes = class_of(value, path)
        self._features.add(EXACT)
        pairs = self._pairs(value, path, depth)
        extra = self._pairs(dict[object, object](attributes), path, depth)
        return {name: [pairs, extra, factory]}

    def _pairs(self, value: dict[object, object], path: str, depth: int) -> list[object]:
        pairs: list[object] = []
        for key, item in value.items():
            where = f"{path}[{shown(key)}]"
            if type(key) not in _KEYS:
                raise UnsupportedStateError(
                    where, f"a key of type {type(key).__name__} is not stored"
                )
            first = _Encoder(None).encode(key, where, depth + 1)
            pairs.append([first, self.encode(item, where, depth + 1)])
        return pairs


def _scalar(value: object, path: str) -> Typed:
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
    raise UnsupportedStateError(
        path,
        f"a {kind.__module__}.{kind.__qualname__} cannot be stored; convert it to numbers, text, "
        "lists, tuples, dicts or arrays first",
    )


def _integer(value: int, path: str) -> Typed:
    if value.bit_length() > 4096 * 3:
        raise UnsupportedStateError(path, "an integer of more than 12288 bits cannot be stored")
    try:
        return {"int": str(value)}
    except ValueError as error:
        # The interpreter was told to write fewer digits, sys.set_int_max_str_digits().
        raise UnsupportedStateError(path, str(error)) from None


def _text(value: str, path: str) -> str:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise UnsupportedStateError(path, f"the text {shown(value)} is not Unicode") from None
    return value


def decode(typed: object, file: str, leaf: TypedLeaf | None = None, depth: int = 0) -> object:
    """Read back what `encode` or `encode_exact` wrote.

    Args:
        typed: The JSON value.
        file: What to call its file in an error.
        leaf: Called with the tag and content of every tag this module does not know.
        depth: How deep in the whole this value is.

    Returns:
        The value, equal in type and bits.

    Raises:
        CorruptCheckpointError: For anything that they do not write.
    """
    return _Decoder(file, leaf).decode(typed, depth)


class _Decoder:
    def __init__(self, file: str, leaf: TypedLeaf | None) -> None:
        self._file = file
        self._leaf = leaf
        # Lists and dicts in the order in which they begin, as the encoder counted them.
        self._made: list[object] = []

    def _bad(self, value: object, what: str = "is not a typed value") -> CorruptCheckpointError:
        return CorruptCheckpointError(self._file, f"{shown(value)} {what}")

    def decode(self, typed: object, depth: int) -> object:
        if depth > MAX_DEPTH:
            raise CorruptCheckpointError(
                self._file, f"a value is nested more than {MAX_DEPTH} deep"
            )
        fields = as_object(typed)
        if fields is None or len(fields) != 1:
            raise self._bad(typed)
        ((tag, content),) = fields.items()
        if tag not in _OWN and self._leaf is not None:
            value = self._leaf(tag, content)
            if tag == "column" and (as_array(content) or [None])[0] == "list":
                self._made.append(value)
            return value
        items = as_array(content)
        if items is not None:
            return self._container(tag, items, depth)
        return self._scalar(tag, content)

    def _scalar(self, tag: str, content: object) -> object:
        if tag == "none" and content == 1:
            return None
        if tag == "bool" and isinstance(content, bool):
            return content
        if tag == "same" and type(content) is int and 0 <= content < len(self._made):
            value = self._made[content]
            if value is not None:
                return value
        if not isinstance(content, str):
            raise self._bad({tag: content})
        if tag == "str":
            return content
        if tag == "int" and _INTEGER.match(content):
            try:
                return int(content)
            except ValueError as error:
                raise self._bad(content, f"is no integer here: {error}") from None
        if tag == "float" and _FLOAT.match(content):
            return self._float(content)
        if tag == "bytes" and re.fullmatch(r"([0-9a-f]{2})*", content):
            return bytes.fromhex(content)
        raise self._bad({tag: content})

    def _float(self, text: str) -> float:
        try:
            return float.fromhex(text)
        except (OverflowError, ValueError):
            raise self._bad(text, "is not a double") from None

    def _container(self, tag: str, content: list[object], depth: int) -> object:
        if tag == "tuple":
            return tuple(self.decode(item, depth + 1) for item in content)
        if tag == "complex" and len(content) == 2:
            parts = [item for item in content if isinstance(item, str) and _FLOAT.match(item)]
            if len(parts) == 2:
                return complex(self._float(parts[0]), self._float(parts[1]))
        if tag not in ("list", "dict", "table", *CLASSES):
            raise self._bad({tag: content})
        number = len(self._made)
        self._made.append(None)
        value = self._mutable(tag, content, depth)
        self._made[number] = value
        return value

    def _mutable(self, tag: str, content: list[object], depth: int) -> object:
        if tag == "list":
            return [self.decode(item, depth + 1) for item in content]
        if tag == "dict":
            return self._pairs(content, depth)
        if tag == "table":
            return self._table(content, depth)
        pairs, extra = (as_array(item) for item in (*content, None, None)[:2])
        if len(content) != 3 or pairs is None or extra is None:
            raise self._bad({tag: content})
        items, attributes = self._pairs(pairs, depth), self._pairs(extra, depth)
        result = make(tag, content[2], items, attributes)
        if result is None:
            raise self._bad({tag: content})
        return result

    def _table(self, content: list[object], depth: int) -> dict[object, object]:
        fields = as_object(content[0]) if len(content) == 2 else None
        if fields is None or fields.keys() != {"column"} or self._leaf is None:
            raise self._bad({"table": content})
        keys = cast("list[object]", self._leaf("column", fields["column"]))
        values = self.decode(content[1], depth + 1)
        if not isinstance(values, list | range) or len(cast("list[object]", values)) != len(keys):
            raise self._bad({"table": content})
        result = dict(zip(keys, cast("list[object]", values), strict=True))
        if len(result) != len(keys):
            raise CorruptCheckpointError(self._file, "a key occurs twice in a table")
        return result

    def _pairs(self, content: list[object], depth: int) -> dict[object, object]:
        result: dict[object, object] = {}
        for pair in content:
            both = as_array(pair)
            if both is None or len(both) != 2:
                raise self._bad(pair, "is not a key and a value")
            first, second = both
            key = _Decoder(self._file, None).decode(first, depth + 1)
            try:
                twice = key in result
            except TypeError:
                raise self._bad(key, "cannot be a key") from None
            if twice:
                raise CorruptCheckpointError(self._file, f"the key {shown(key)} occurs twice")
            result[key] = self.decode(second, depth + 1)
        return result
