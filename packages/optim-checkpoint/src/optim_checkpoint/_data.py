# pyright: strict
"""Data loaders and samplers: whatever says where it is and can go there again."""

import contextlib
import copy
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

from optim_checkpoint._errors import shown


class Stateful(Protocol):
    """Anything with a state dict: a scheduler, a GradScaler, a data loader."""

    def state_dict(self) -> Any:
        """Return the state."""
        ...

    def load_state_dict(self, state_dict: Any) -> Any:
        """Take the state back."""
        ...


class Position(Protocol):
    """An iterator that names its methods otherwise, as those of Grain do."""

    def get_state(self) -> Any:
        """Return the state."""
        ...

    def set_state(self, state: Any) -> Any:
        """Take the state back."""
        ...


Data = Stateful | Position | Mapping[str, Stateful | Position] | None


class _Adapted:
    def __init__(self, iterator: Position) -> None:
        self.state_dict = iterator.get_state
        self.load_state_dict = iterator.set_state


def stateful_data(data: Data) -> Any:
    """Return data loaders with the methods of a state dict, in the mapping they came in."""
    if isinstance(data, Mapping) and not hasattr(data, "state_dict"):
        return {name: _one(value) for name, value in cast("Mapping[str, object]", data).items()}
    return None if data is None else _one(data)


def _one(value: object) -> Any:
    if hasattr(value, "state_dict") or not hasattr(value, "get_state"):
        return value
    return _Adapted(cast("Position", value))


def check_data(value: object, where: str = "data") -> Stateful:
    """Return `value` if it has a state dict.

    Raises:
        TypeError: If not.
    """
    lacking = [name for name in ("state_dict", "load_state_dict") if not hasattr(value, name)]
    if lacking:
        raise TypeError(
            f"{where} is a {type(value).__name__}, which has no {' and no '.join(lacking)}"
        )
    return cast("Stateful", value)


def is_given_name(name: object) -> bool:
    """Say whether one of several objects may have this name.

    Example:
        >>> is_given_name("critic"), is_given_name("a.b")
        (True, False)
    """
    return isinstance(name, str) and name.isprintable() and name != "" and not {*name} & {".", "/"}


def data_by_key(data: Data) -> dict[str, Stateful]:
    """Return data loaders under their keys in a checkpoint.

    Raises:
        TypeError: For what has no state dict, and for a name that is not text.

    Example:
        >>> class Loader:
        ...     state_dict = load_state_dict = dict
        >>> list(data_by_key({"train": Loader(), "val": Loader()}))
        ['data/train', 'data/val']
    """
    given = stateful_data(data)
    if given is None:
        return {}
    if not isinstance(given, dict):
        return {"data": check_data(given)}
    named = cast("dict[object, object]", given)
    for name in named:
        if not is_given_name(name):
            raise TypeError(
                f"data has the name {shown(name)}; a name is printable text without '.' and '/'"
            )
    return {f"data/{name}": check_data(v, f"data[{shown(name)}]") for name, v in named.items()}


def look(live: Stateful) -> Any:
    """Return the state dict of an object and leave its attributes as they were.

    torchdata's nodes make an iterator to answer, and what is loaded afterwards does not reach it.
    """
    fields = dict(getattr(live, "__dict__", {}))
    try:
        return live.state_dict()
    finally:
        put_back(live, fields)


def put_back(live: object, fields: Mapping[str, Any]) -> None:
    """Set the attributes of an object to `fields`; what has none is left alone."""
    if fields:
        for name in vars(live).keys() - fields.keys():
            del vars(live)[name]
        vars(live).update(fields)


def load_data(states: Sequence[tuple[Stateful, Any]]) -> None:
    """Give loaders their states; where one refuses, all are where they were."""
    with contextlib.ExitStack() as undo:
        for loader, state in states:
            undo.callback(loader.load_state_dict, copy.deepcopy(look(loader)))
            loader.load_state_dict(state)
        undo.pop_all()
