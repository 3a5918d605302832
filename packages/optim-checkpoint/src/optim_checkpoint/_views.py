# pyright: strict
"""Arrays that are views of one memory: each would come back with memory of its own."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from optim_checkpoint._errors import UnsupportedStateError
from optim_checkpoint._numpy import AnyArray

# Steps after which two views that may have an element in common count as if they had.
_MAX_WORK = 100_000


@dataclass(frozen=True, slots=True)
class View:
    """Memory that a stored array is a view of.

    Attributes:
        device: Where it is.
        begin: Address of its first byte.
        end: Address after its last byte.
        path: Where the array is in the state.
        identity: Equal for arrays that are the same view.
        array: The array, where NumPy can see it.
    """

    device: str
    begin: int
    end: int
    path: str
    identity: Hashable
    array: AnyArray | None

    @classmethod
    def of(cls, device: str, array: AnyArray, path: str, identity: Hashable) -> "View":
        """Describe a view that NumPy can see."""
        begin, end = np.lib.array_utils.byte_bounds(array)
        return cls(device, begin, end, path, identity, array)

    def meets(self, other: "View") -> bool:
        """Say whether two views, whose ranges meet, have an element in common or may have."""
        if self.array is None or other.array is None:
            return True
        try:
            # NumPy's stub knows the two special values only.
            work = cast("Any", _MAX_WORK)
            return np.shares_memory(self.array, other.array, max_work=work)
        except np.exceptions.TooHardError:
            return True


def check_apart(views: Sequence[View]) -> None:
    """Refuse two views of one memory that are not the same view.

    Raises:
        UnsupportedStateError: With the paths of both.
    """
    open_views: list[View] = []
    for view in sorted(views, key=lambda view: (view.device, view.begin)):
        open_views = [o for o in open_views if o.device == view.device and o.end > view.begin]
        for other in open_views:
            if other.identity != view.identity and other.meets(view):
                raise UnsupportedStateError(
                    view.path,
                    f"shares memory with {other.path} and would come back apart from it; store "
                    "one of them, or a copy",
                )
        open_views.append(view)
