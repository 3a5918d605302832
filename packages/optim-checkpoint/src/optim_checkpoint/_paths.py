# pyright: strict
"""Paths of pytree leaves as tuples of (kind, text), without needing JAX to read them.

The kind keeps apart what prints alike, such as the dict key ``"0"`` and the list index 0, so that a
path names one leaf and no other.
"""

from optim_checkpoint._errors import CorruptCheckpointError, shown
from optim_checkpoint._json import as_array
from optim_checkpoint._names import join

Path = tuple[tuple[str, str], ...]
_SPELLED = {
    "key": "a str key",
    "int": "an int key",
    "idx": "an index of a sequence",
    "attr": "an attribute",
    "flat": "the number of a child",
}


def text(path: Path) -> str:
    """Return a path for people: its components joined by dots, ``~`` for the root."""
    return join(component for _, component in path) or "~"


def kind_difference(saved: Path, live: Path) -> str:
    """Say how two paths differ that print alike.

    >>> kind_difference((("int", "0"),), (("key", "0"),))
    '0 is an int key in the checkpoint, a str key in the template'
    """
    for (there, name), (here, _) in zip(saved, live, strict=False):
        if there != here:
            return (
                f"{name} is {_SPELLED[there]} in the checkpoint, {_SPELLED[here]} in the template"
            )
    return "the path is another one in the template"


def to_json(path: Path) -> list[list[str]]:
    """Return a path as JSON."""
    return [list(component) for component in path]


def from_json(value: object, file: str) -> Path:
    """Read what `to_json` wrote."""
    path: list[tuple[str, str]] = []
    items = as_array(value)
    if items is None:
        raise CorruptCheckpointError(file, f"{shown(value)} is not a path")
    for item in items:
        pair = as_array(item) or []
        if len(pair) != 2 or pair[0] not in _SPELLED or not isinstance(pair[1], str):
            raise CorruptCheckpointError(file, f"{shown(value)} is not a path")
        path.append((str(pair[0]), pair[1]))
    return tuple(path)
