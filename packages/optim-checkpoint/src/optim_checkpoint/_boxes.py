# pyright: strict
"""Where a part of a tensor lies in the whole, and copying between such parts.

A box is an offset and a shape. The boxes of one tensor always form a grid: each dimension is cut
once, and a box is one cell. Meshes of both frameworks shard like that, and a grid is checked in
linear time, so that a hostile manifest cannot make overlaps expensive to find.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Offset = tuple[int, ...]
Shape = tuple[int, ...]
Bytes = npt.NDArray[np.uint8]
_NUMPY_DIMENSIONS = 64


def grid_fault(shape: Shape, boxes: Sequence[tuple[Offset, Shape]]) -> str | None:
    """Say why boxes are not a grid that covers `shape` exactly once, or return None.

    Args:
        shape: The shape of the whole.
        boxes: Offset and shape of each part; all with as many dimensions as `shape`.

    Example:
        >>> grid_fault((5,), [((0,), (2,)), ((2,), (3,))])
        >>> grid_fault((5,), [((0,), (2,)), ((3,), (2,))])
        'its shards leave a hole at 2 along dimension 0'
    """
    cells = 1
    for dimension, size in enumerate(shape):
        cuts = sorted({(o[dimension], o[dimension] + s[dimension]) for o, s in boxes})
        position = 0
        for begin, end in cuts:
            if end <= begin:
                return f"it has an empty shard at {begin} along dimension {dimension}"
            if begin != position:
                kind = "overlap" if begin < position else "leave a hole"
                return f"its shards {kind} at {min(begin, position)} along dimension {dimension}"
            position = end
        if position != size:
            return f"its shards cover {position} of {size} along dimension {dimension}"
        cells *= len(cuts)
    if len({offset for offset, _ in boxes}) != len(boxes):
        return "two of its shards lie at the same place"
    if len(boxes) != cells:
        return f"it has {len(boxes)} shards, its grid has {cells} cells"
    return None


@dataclass(frozen=True, slots=True)
class Region:
    """Memory that wants a box of a tensor.

    Attributes:
        offset: Where the box starts in the whole tensor.
        data: Its bytes, of the box's shape with the bytes of one element as last dimension; any
            strides.
    """

    offset: Offset
    data: Bytes

    @property
    def shape(self) -> Shape:
        """Shape of the box."""
        return self.data.shape[:-1]

    def meets(self, offset: Offset, shape: Shape) -> bool:
        """Say whether the region has elements in common with a box."""
        return all(
            max(a, b) < min(a + n, b + m)
            for a, n, b, m in zip(self.offset, self.shape, offset, shape, strict=True)
        )

    def view_of(self, offset: Offset, shape: Shape) -> memoryview | None:
        """Return the memory of a box where the region holds all of it in one piece."""
        inside = tuple(b - a for a, b in zip(self.offset, offset, strict=True))
        if any(
            not 0 <= start <= size - length
            for start, size, length in zip(inside, self.shape, shape, strict=True)
        ):
            return None
        cut = self.data[tuple(slice(i, i + n) for i, n in zip(inside, shape, strict=True))]
        return memoryview(cut.reshape(-1)) if cut.flags.c_contiguous else None

    def take(self, offset: Offset, piece: Bytes) -> None:
        """Copy what the region has in common with a box of bytes that starts at `offset`."""
        source: list[slice] = []
        target: list[slice] = []
        for a, n, b, m in zip(self.offset, self.shape, offset, piece.shape[:-1], strict=True):
            low, high = max(a, b), min(a + n, b + m)
            if low >= high:
                return
            target.append(slice(low - a, high - a))
            source.append(slice(low - b, high - b))
        self.data[tuple(target)] = piece[tuple(source)]


def visible(shape: Shape, offset: Offset | None = None) -> Shape:
    """Return a shape, or the offset of a box in it, with as few dimensions as NumPy can see.

    It sees 64, the bytes of an element among them, and torch makes tensors of more. At most 63 of a
    tensor that has elements have more than one.
    """
    values = shape if offset is None else offset
    if len(shape) < _NUMPY_DIMENSIONS:
        return values
    return tuple(value for value, size in zip(values, shape, strict=True) if size != 1)


def whole(flat: Bytes, shape: Shape, itemsize: int) -> Region:
    """Return the region that is a whole tensor, from its bytes."""
    seen = visible(shape)
    return Region((0,) * len(seen), flat.reshape(*seen, itemsize))
