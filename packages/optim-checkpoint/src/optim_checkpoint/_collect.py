# pyright: strict
"""Gathering the tensors of a save under unique keys, and handing them out in a restore."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import numpy as np

from optim_checkpoint._boxes import Offset, Region, Shape, whole
from optim_checkpoint._columns import COLUMNS, pack, unpack
from optim_checkpoint._errors import CorruptCheckpointError, UnsupportedStateError, shown
from optim_checkpoint._files import ShardEntry
from optim_checkpoint._generation import Generation
from optim_checkpoint._header import BITS, TensorInfo
from optim_checkpoint._json import as_array, as_object
from optim_checkpoint._names import label_of
from optim_checkpoint._numpy import (
    AnyArray,
    array_of,
    axis_order,
    bytes_of,
    dtype_name,
    invert,
    is_order,
)
from optim_checkpoint._shard import Entry
from optim_checkpoint._typed import EXACT, Typed, decode
from optim_checkpoint._views import View, check_apart


@dataclass
class Collector:
    """The tensors of one part of a save.

    Attributes:
        entries: What was added, in order.
        shards: The tensors that are spread over processes with the shapes of the whole, also those
            of which this process has no part.
        features: What a reader has to know beyond the first version of the format.
        views: The memory of what was added exactly, for `check_views`.
    """

    entries: list[Entry] = field(default_factory=list[Entry])
    shards: dict[str, Shape] = field(default_factory=dict[str, Shape])
    features: set[str] = field(default_factory=set[str])
    views: list[View] = field(default_factory=list[View])
    _keys: dict[str, int] = field(default_factory=dict[str, int])
    _aliases: dict[Hashable, str] = field(default_factory=dict[Hashable, str])

    def add(
        self,
        key: str,
        dtype: str,
        shape: tuple[int, ...],
        read: Callable[[], memoryview],
        identity: Hashable = None,
    ) -> str:
        """Add a tensor and return its key.

        Keys are labels, the manifest says what they stand for: one that is taken gets a number.

        Args:
            key: The key it should have.
            dtype: Its safetensors dtype.
            shape: Its shape.
            read: Returns its bytes.
            identity: Equal for tensors that are one memory; such are stored once. None is unique.
        """
        unique, new = self._key(key, identity)
        if new:
            self.entries.append(Entry(unique, dtype, shape, read))
        return unique

    def add_shards(
        self,
        key: str,
        dtype: str,
        shape: Shape,
        boxes: Sequence[tuple[Offset, Shape, Callable[[], memoryview], int]],
        identity: Hashable = None,
    ) -> str:
        """Add what this process holds of a tensor that is spread over several.

        Args:
            key: The key it should have.
            dtype: Its safetensors dtype.
            shape: The shape of the whole.
            boxes: Offset, shape, bytes and number of the replica, as in `ShardEntry`, of each part;
                none where this process has none.
            identity: As in `add`; equal in all processes or in none.
        """
        unique, new = self._key(key, identity)
        if new:
            self.shards[unique] = shape
            self.entries += [
                ShardEntry(unique, dtype, part, read, offset, shape, replica)
                for offset, part, read, replica in boxes
            ]
        return unique

    def _key(self, key: str, identity: Hashable) -> tuple[str, bool]:
        if identity is not None and identity in self._aliases:
            return self._aliases[identity], False
        unique = label = label_of(key)
        while unique in self._keys:
            self._keys[label] += 1
            unique = label_of(f"{label}#{self._keys[label]}")
        self._keys[unique] = 1
        if identity is not None:
            self._aliases[identity] = unique
        return unique, True

    def numpy_leaf(
        self, prefix: str, *, exact: bool = False
    ) -> Callable[[object, str], Typed | None]:
        """Return an `encode` hook that stores long lists, NumPy arrays and scalars under `prefix`.

        With `exact`, the order of an array's axes in memory is kept, and arrays that share memory
        without being the same are refused by `check_views`.
        """

        def leaf(value: object, path: str) -> Typed | None:
            if type(value) in (list, tuple):
                return self._add_column(cast("list[object]", value), f"{prefix}{path}", path)
            if exact and type(value) is np.ndarray:
                return self._add_exact(value, f"{prefix}{path}", path)
            return self.add_numpy(value, f"{prefix}{path}", path)

        return leaf

    def _add_column(
        self, items: list[object] | tuple[object, ...], key: str, path: str
    ) -> Typed | None:
        arrays = pack(items, path)
        if arrays is None:
            return None
        self.features.add(COLUMNS)
        stored = [
            self.add(key, dtype_name(array.dtype, path), array.shape, partial(bytes_of, array))
            for array in arrays
        ]
        return {"column": [type(items).__name__, len(items), *stored]}

    def _add_exact(self, array: AnyArray, key: str, path: str) -> Typed:
        order = axis_order(array.strides, array.shape)
        moved = array.transpose(order)
        identity = None
        if array.size:
            identity = (array.ctypes.data, moved.shape, moved.strides, array.dtype.str)
            self.views.append(View.of("cpu", array, path, identity))
        typed = self.add_numpy(moved, key, path, identity) or {}
        if order == tuple(range(array.ndim)):
            return typed
        self.features.add(EXACT)
        return {"axes": [typed, *order]}

    def add_numpy(
        self, value: object, key: str, path: str, identity: Hashable = None
    ) -> Typed | None:
        """Add a NumPy array or scalar and return its typed leaf; None for anything else.

        Raises:
            UnsupportedStateError: For a dtype without equivalent, and for a subclass, which may
                hold more than its numbers: a masked array has a mask.
        """
        kind = type(value)
        if not isinstance(value, np.ndarray | np.generic):
            return None
        if isinstance(value, np.ndarray) and kind is not np.ndarray:
            raise UnsupportedStateError(
                path, f"a {kind.__name__} is an array subclass; store its plain arrays"
            )
        array: AnyArray = np.asarray(cast("AnyArray", value))
        stored = self.add(
            key, dtype_name(array.dtype, path), array.shape, partial(bytes_of, array), identity
        )
        return {"ndarray" if isinstance(value, np.ndarray) else "npscalar": stored}

    def check_views(self) -> None:
        """Refuse two views of one memory that were added exactly: each would get its own.

        Raises:
            UnsupportedStateError: With the paths of both.
        """
        check_apart(self.views)


@dataclass
class Staging:
    """Memory for the tensors of one part that a restore asks for.

    Attributes:
        part: The part.
        file: What to call it in an error.
        tensors: What the part holds.
        generation: The generation it is a part of.
        memory: The memory asked for so far, by key, each for a whole tensor.
        regions: The parts of tensors asked for so far, by key.
    """

    part: str
    file: str
    tensors: Mapping[str, TensorInfo]
    generation: Generation
    memory: dict[str, memoryview] = field(default_factory=dict[str, memoryview])
    regions: dict[str, list[Region]] = field(default_factory=dict[str, list[Region]])
    _arrays: dict[str, AnyArray] = field(default_factory=dict[str, AnyArray])
    _columns: set[object] = field(default_factory=set[object])

    @classmethod
    def of(cls, generation: Generation, part: str) -> "Staging":
        """Prepare to read a part of an open generation."""
        return cls(part, f"{generation.name}/{part}", generation.tensors(part), generation)

    def info(self, key: object) -> TensorInfo:
        """Return the description of a stored tensor."""
        if not isinstance(key, str) or key not in self.tensors:
            raise CorruptCheckpointError(self.file, f"there is no tensor {shown(key)}")
        return self.tensors[key]

    def want(self, key: str, region: Region) -> None:
        """Ask for a part of a stored tensor."""
        self.regions.setdefault(key, []).append(region)

    def wanted(self) -> dict[tuple[str, str], memoryview | list[Region]]:
        """Return everything that was asked for, by part and key."""
        result: dict[tuple[str, str], memoryview | list[Region]] = {
            (self.part, key): memory for key, memory in self.memory.items()
        }
        for key, regions in self.regions.items():
            listed = list(regions)
            info = self.tensors[key]
            if key in self.memory and info.nbytes:
                memory = np.asarray(self.memory[key])
                listed.append(whole(memory, info.shape, BITS[info.dtype] // 8))
            result[self.part, key] = listed
        return result

    def claim(self, key: str, memory: memoryview) -> None:
        """Ask for a whole tensor in memory that no other kind of value has asked for it.

        Raises:
            CorruptCheckpointError: If one has: only one of the two would be read.
        """
        if key in self.memory:
            raise CorruptCheckpointError(
                self.file, "stands for two kinds of value in the manifest", tensor=key
            )
        self.memory[key] = memory

    def array(self, key: object) -> AnyArray:
        """Return the NumPy array that the read will fill."""
        info = self.info(key)
        name = str(key)
        if name not in self._arrays:
            array, memory = array_of(info, self.file, name)
            self.claim(name, memory)
            self._arrays[name] = array
        return self._arrays[name]

    def numpy_leaf(self, tag: str, content: object) -> object:
        """Decode what `Collector.numpy_leaf` wrote; an array is filled by the read of the part."""
        items = as_array(content) or []
        if tag == "ndarray":
            return self.array(content)
        if tag == "npscalar" and self.info(content).shape == ():
            return self._fetch(content)[()]
        if tag == "column":
            return self._column(items)
        if tag == "axes" and items and (as_object(items[0]) or {}).keys() == {"ndarray"}:
            array = self.array(cast("dict[str, object]", items[0])["ndarray"])
            if is_order(items[1:], array.ndim):
                return array.transpose(invert(cast("list[int]", items[1:])))
        raise CorruptCheckpointError(self.file, f"{shown({tag: content})} is not a typed value")

    def _fetch(self, key: object) -> AnyArray:
        """Read and verify a small tensor now: its value has a part in what is compared."""
        array, memory = array_of(self.info(key), self.file, str(key))
        self.generation.fetch(self.part, str(key), memory)
        return array

    def _column(self, content: list[object]) -> object:
        kind, count, *keys = [*content, None, None][: max(len(content), 2)]
        # A second list from the same bytes would make a small file cost much memory.
        infos = [self.info(key) for key in keys]
        if kind in ("list", "tuple") and len(keys) in (1, 2) and not self._columns & set(keys):
            self._columns.update(keys)
            items = None
            if infos[-1].shape == (count,):
                items = unpack([self._fetch(key) for key in keys])
            if items is not None:
                return items if kind == "list" else tuple(items)
        raise CorruptCheckpointError(
            self.file, f"{shown({'column': content})} is not a stored list"
        )

    def decode(self, typed: object) -> object:
        """Decode a typed value with NumPy arrays in it."""
        return decode(typed, self.file, self.numpy_leaf)


def read_staged(generation: Generation, *stagings: Staging, rank: int = 0, size: int = 1) -> None:
    """Verify a generation, or one process's share of it, and fill what the stagings hand out."""
    wanted: dict[tuple[str, str], memoryview | list[Region]] = {}
    for staging in stagings:
        wanted |= staging.wanted()
    generation.read(lambda part, key, info: wanted.get((part, key)), rank=rank, size=size)
