"""When two runs have the same factory: what they trained or compiled with it may then be shared."""

from types import MethodType
from typing import Any


class SameFactory:
    """A factory as a key, equal for the same object.

    Objects that can be called need not have a hash, and equal ones need not do the same: a frozen
    dataclass with 1 equals one with 1.0. The key holds the factory, so that no other one can get
    its id meanwhile.
    """

    def __init__(self, factory: Any) -> None:
        # A bound method is made anew whenever somebody asks for it.
        bound = isinstance(factory, MethodType)
        self._parts = (factory.__self__, factory.__func__) if bound else (factory,)
        self._ids = tuple(map(id, self._parts))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SameFactory) and self._ids == other._ids

    def __hash__(self) -> int:
        return hash(self._ids)
