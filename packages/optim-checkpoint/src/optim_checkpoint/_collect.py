# pyright: strict
"""Gathering the tensors of a save under unique keys, and handing them out in a restore."""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import cast

import numpy as np

from optim_checkpoint._errors import CorruptCheckpointError, shown
from optim_checkpoint._generation import Generation
from optim_checkpoint._header import TensorInfo
from optim_checkpoint._numpy import AnyArray, array_of, bytes_of, dtype_name
from optim_checkpoint._shard import Entry
from optim_checkpoint._typed import Typed, decode


@dataclass
class Collector:
    """The tensors of one part of a save.

    Attributes:
        entries: What was added, in order.
    """

    entries: list[Entry] = field(default_factory=list[Entry])
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
        if identity is not None and identity in self._aliases:
            return self._aliases[identity]
        unique, count = key, 1
        while unique in self._keys:
            count += 1
            unique = f"{key}#{count}"
        self._keys.add(unique)
        self.entries.append(Entry(unique, dtype, shape, read))
        if identity is not None:
            self._aliases[identity] = unique
        return unique

    def numpy_leaf(self, prefix: str) -> Callable[[object, str], Typed | None]:
        """Return an `encode` hook that stores NumPy arrays and scalars under `prefix`."""

        def leaf(value: object, path: str) -> Typed | None:
            if not isinstance(value, np.ndarray | np.generic):
                return None
            array: AnyArray = np.asarray(cast("AnyArray", value))
            key = self.add(
                f"{prefix}{path}",
                dtype_name(array.dtype, path),
                array.shape,
                lambda: bytes_of(array),
            )
            return {"ndarray" if isinstance(value, np.ndarray) else "npscalar": key}

        return leaf


@dataclass
class Staging:
    """Memory for the tensors of one part that a restore asks for.

    Attributes:
        part: The part.
        file: What to call it in an error.
        tensors: What the part holds.
        memory: The memory asked for so far, by key.
    """

    part: str
    file: str
    tensors: Mapping[str, TensorInfo]
    memory: dict[str, memoryview] = field(default_factory=dict[str, memoryview])
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

    def array(self, key: object) -> AnyArray:
        """Return the NumPy array that the read will fill."""
        info = self.info(key)
        name = str(key)
        if name not in self._arrays:
            array, memory = array_of(info, self.file, name)
            self._arrays[name] = array
            self.memory[name] = memory
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


def read_staged(generation: Generation, *stagings: Staging) -> None:
    """Verify a whole generation and fill the memory that the stagings hand out."""
    wanted = {(staging.part, key): m for staging in stagings for key, m in staging.memory.items()}
    generation.read(lambda part, key, info: wanted.get((part, key)))
