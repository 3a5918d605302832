# pyright: strict
"""JSON as checkpoints use it: one spelling to write, nothing ambiguous accepted to read.

Python's parser keeps the last of two equal keys, accepts NaN, lone surrogates and numbers of any
length, and builds objects thirty times the size of their text. Each of these has been used against
a loader, so they are refused before or while parsing.
"""

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from optim_checkpoint._errors import CorruptCheckpointError, shown

_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?+', re.DOTALL)
_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_KEEP = b"{[,]}"
_DROP = bytes(sorted(set(range(256)) - set(_KEEP)))
_STEP = {ord("{"): 1, ord("["): 1, ord("}"): -1, ord("]"): -1, ord(","): 0}
_DIGITS = 19
# What a container and an element cost in CPython, rounded up, and what any document may cost.
CONTAINER_BYTES = 120
ELEMENT_BYTES = 60
MEMORY = 160 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """How large and how deep a document may be.

    Attributes:
        size: Its greatest number of bytes.
        depth: Its greatest nesting.
        ratio: How many bytes of memory each of its bytes may take, where that is more than MEMORY.
    """

    size: int
    depth: int
    ratio: int = 0


def measure(raw: bytes, file: str, limits: Limits) -> None:
    """Refuse a document that would take too much to parse, without parsing it.

    Raises:
        CorruptCheckpointError: With the limit that it exceeds.
    """
    if len(raw) > limits.size:
        raise CorruptCheckpointError(file, f"{len(raw)} bytes of JSON, the limit is {limits.size}")
    # Without the strings only structure is left; no full parse is paid for a hostile document.
    structure = _STRING.sub(b"", raw).translate(None, _DROP)
    containers = structure.count(b"{") + structure.count(b"[")
    cost = containers * CONTAINER_BYTES + structure.count(b",") * ELEMENT_BYTES
    most = max(MEMORY, limits.ratio * len(raw))
    if cost > most:
        raise CorruptCheckpointError(
            file,
            f"JSON with {containers} containers: too many to parse, some {cost} bytes of memory "
            f"where {most} are the limit",
        )
    deepest = max(itertools.accumulate(map(_STEP.__getitem__, structure)), default=0)
    if deepest > limits.depth:
        raise CorruptCheckpointError(
            file, f"JSON nested {deepest} deep, the limit is {limits.depth}"
        )


class _RefusedError(ValueError):
    pass


def _refuse(token: str) -> object:
    raise _RefusedError(f"the number {shown(token)} is not allowed here")


def _integer(digits: str) -> int:
    if digits == "-0":
        # An integer here, the float -0.0 to the JSON reader of safetensors.
        _refuse(digits)
    if len(digits.lstrip("-")) > _DIGITS:
        raise _RefusedError(f"an integer of {len(digits)} digits is not allowed here")
    return int(digits)


def _pairs(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _RefusedError(f"the key {shown(key)} occurs twice")
            seen.add(key)
    return result


def loads(raw: bytes, *, file: str, limits: Limits) -> object:
    """Parse `raw` strictly.

    Args:
        raw: The document in UTF-8.
        file: What to call it in an error.
        limits: Greatest size and nesting.

    Returns:
        Dicts, lists, strings, integers, booleans and None; never a float.

    Raises:
        CorruptCheckpointError: For anything but plain, bounded, unambiguous JSON.
    """
    measure(raw, file, limits)
    try:
        value = cast(
            "object",
            json.loads(
                raw.decode("utf-8", "strict"),
                object_pairs_hook=_pairs,
                parse_float=_refuse,
                parse_constant=_refuse,
                parse_int=_integer,
            ),
        )
        # UTF-8 has no surrogates: only an escape can have put one in, without its other half.
        if _ESCAPED_SURROGATE.search(raw):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except UnicodeDecodeError as error:
        raise CorruptCheckpointError(file, f"not UTF-8 at byte {error.start}") from None
    except UnicodeEncodeError:
        raise CorruptCheckpointError(file, "a string holds a lone surrogate") from None
    except _RefusedError as error:
        raise CorruptCheckpointError(file, str(error)) from None
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpointError(file, f"not JSON ({shown(str(error))})") from None


def as_object(value: object) -> dict[str, object] | None:
    """Return `value` if it is a JSON object."""
    return cast("dict[str, object]", value) if isinstance(value, dict) else None


def as_array(value: object) -> list[object] | None:
    """Return `value` if it is a JSON array."""
    return cast("list[object]", value) if isinstance(value, list) else None


def dumps(value: object, *, sort: bool = True) -> bytes:
    """Return the one spelling of `value`: ASCII, compact, keys sorted unless told otherwise."""
    return json.dumps(
        value, ensure_ascii=True, allow_nan=False, separators=(",", ":"), sort_keys=sort
    ).encode("ascii")
