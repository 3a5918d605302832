# pyright: strict
"""Gathering the tensors of a save under unique keys, and handing them out in a restore."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np

from optim_checkpoint._boxes import Offset, Region, Shape, whole
from optim_checkpoint._errors import CorruptCheckpointError, UnsupportedStateError, shown
from optim_checkpoint._files import ShardEntry
from optim_checkpoint._generation import Generation
from optim_checkpoint._header import BITS, TensorInfo
from optim_checkpoint._numpy import AnyArray, array_of, bytes_of, dtype_name
from optim_checkpoint._shard import Entry
from optim_checkpoint._typed import Typed, decode


@dataclass
class Collector:
    """The tensors of one part of a save.

    Attributes:
        entries: What was added, in order.
        shards: The tensors that are spread over processes with the shapes of the whole, also those
            of which this process has no part.
    """

    entries: list[Entry] = field(default_factory=list[Entry])
    shards: dict[str, Shape] = field(default_factory=dict[str, Shape])
    _keys: set[str] = field(default_factory=set[str])
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
        boxes: Sequence[tuple[Offset, Shape, Callable[[], memoryview]]],
        identity: Hashable = None,
    ) -> str:
        """Add what this process holds of a tensor that is spread over several.

        Args:
            key: The key it should have.
            dtype: Its safetensors dtype.
            shape: The shape of the whole.
            boxes: Offset, shape and bytes of each part; none where this process has none.
            identity: As in `add`; equal in all processes or in none.
        """
        unique, new = self._key(key, identity)
        if new:
            self.shards[unique] = shape
            self.entries += [
                ShardEntry(unique, dtype, part, read, offset, shape) for offset, part, read in boxes
            ]
        return unique

    def _key(self, key: str, identity: Hashable) -> tuple[str, bool]:
        if identity is not None and identity in self._aliases:
            return self._aliases[identity], False
        unique, count = key, 1
        while unique in self._keys:
            count += 1
            unique = f"{key}#{count}"
        self._keys.add(unique)
        if identity is not None:
            self._aliases[identity] = unique
        return unique, True

    def numpy_leaf(self, prefix: str) -> Callable[[object, str], Typed | None]:
        """Return an `encode` hook that stores NumPy arrays and scalars under `prefix`."""
        return lambda value, path: self.add_numpy(value, f"{prefix}{path}", path)

    def add_numpy(self, value: object, key: str, path: str) -> Typed | None:
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
        stored = self.add(key, dtype_name(array.dtype, path), array.shape, lambda: bytes_of(array))
        return {"ndarray" if isinstance(value, np.ndarray) else "npscalar": stored}


@dataclass
class Staging:
    """Memory for the tensors of one part that a restore asks for.

    Attributes:
        part: The part.
        file: What to call it in an error.
        tensors: What the part holds.
        memory: The memory asked for so far, by key, each for a whole tensor.
        regions: The parts of tensors asked for so far, by key.
    """

    part: str
    file: str
    tensors: Mapping[str, TensorInfo]
    memory: dict[str, memoryview] = field(default_factory=dict[str, memoryview])
    regions: dict[str, list[Region]] = field(default_factory=dict[str, list[Region]])
    _arrays: dict[str, AnyArray] = field(default_factory=dict[str, AnyArray])

    @classmethod
    def of(cls, generation: Generation, part: str) -> "Staging":
        """Prepare to read a part of an open generation."""
        return cls(part, f"{generation.name}/{part}", generation.tensors(part))

    def info(self, key: object) -> TensorInfo:
        """Return the description of a stored tensor."""
        if not isinstance(key, str) or key not in self.tensors:
            raise CorruptCheckpointError(self.file, f"there is no tensor {shown(key)}")
        return self.tensors[key]

    def want(self, key: str, region: Region) -> None:
        """Ask for a part of a stored tensor."""
        self.regions.setdefault(key, []).append(region)

    def wanted(self) -> dict[tuple[str, str], list[Region]]:
        """Return everything that was asked for, by part and key."""
        result = {(self.part, key): list(regions) for key, regions in self.regions.items()}
        for key, memory in self.memory.items():
            info = self.tensors[key]
            region = whole(np.asarray(memory), info.shape, BITS[info.dtype] // 8)
            result.setdefault((self.part, key), []).append(region)
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
        """Decode what `Collector.numpy_leaf` wrote; scalars come as `Scalar` until filled."""
        if tag == "ndarray":
            return self.array(content)
        if tag == "npscalar" and self.info(content).shape == ():
            return Scalar(self.array(content))
        raise CorruptCheckpointError(self.file, f"{shown({tag: content})} is not a typed value")

    def decode(self, typed: object) -> object:
        """Decode a typed value with NumPy arrays in it."""
        return decode(typed, self.file, self.numpy_leaf)


@dataclass(frozen=True)
class Scalar:
    """A NumPy scalar whose value has not been read yet."""

    array: AnyArray


def settle(value: object) -> object:
    """Replace every `Scalar` by its value, now that the data is there."""
    if isinstance(value, Scalar):
        return value.array[()]
    kind = type(value)
    if kind is list:
        return [settle(item) for item in cast("list[object]", value)]
    if kind is tuple:
        return tuple(settle(item) for item in cast("tuple[object, ...]", value))
    if kind is dict:
        return {key: settle(item) for key, item in cast("dict[object, object]", value).items()}
    return value


def read_staged(generation: Generation, *stagings: Staging, rank: int = 0, size: int = 1) -> None:
    """Verify a generation, or one process's share of it, and fill what the stagings hand out."""
    wanted: dict[tuple[str, str], list[Region]] = {}
    for staging in stagings:
        wanted |= staging.wanted()
    generation.read(lambda part, key, info: wanted.get((part, key)), rank=rank, size=size)
