# pyright: strict
"""Which file each tensor goes to, and what the files are called.

One file holds at most one shard of a tensor, under the tensor's own key: so every file is a plain
safetensors file, and torch's distributed reader, which finds shards by key and offset, reads all of
them. A part of whole tensors in several files gets the index that Hugging Face's loaders look for.
"""

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from optim_checkpoint._boxes import Offset, Shape
from optim_checkpoint._errors import UnsupportedStateError
from optim_checkpoint._header import MAX_HEADER, MAX_METADATA, MAX_TENSORS
from optim_checkpoint._json import CONTAINER_BYTES, ELEMENT_BYTES, MEMORY, dumps
from optim_checkpoint._shard import Entry, Layout, lay_out

# Three parts of some 5,000 processes that save together.
MAX_FILES = 1 << 14
# What Hugging Face's loaders write by default.
MAX_SHARD_SIZE = 5 * 10**9
SHARDING = "DCP_SHARDING_INFO"
# Offsets are metadata, of which a reader of headers accepts a bounded amount.
MAX_INFO = MAX_METADATA // 2
_SLACK = 64 << 10
# What a header says of a tensor beside its name and its dimensions, and what those take at most.
_ENTRY = len(b'"":{"dtype":"F8_E5M2FNUZ","shape":[],"data_offsets":[,]},') + 2 * 19
_DIMENSION = 16


@dataclass(frozen=True, slots=True)
class ShardEntry(Entry):
    """One box of a tensor that is spread over processes.

    Attributes:
        offset: Where the box starts.
        whole: The shape of the whole tensor.
        replica: Which of the processes that hold this very box this is, as its sharding says; 0
            writes it.
    """

    offset: Offset
    whole: Shape
    replica: int = 0


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file to write.

    Attributes:
        part: Its folder.
        base: Its name in that folder.
        layout: Its content.
        offsets: Where its shards lie, by key.
    """

    part: str
    base: str
    layout: Layout
    offsets: Mapping[str, Offset]


def check_max_shard_size(value: object) -> int:
    """Return `value` if it is an integer of at least 1."""
    if type(value) is not int or value < 1:
        raise ValueError(f"max_shard_size is {value!r}; it must be an integer of at least 1 byte")
    return value


def split(entries: Iterable[Entry], limit: int) -> list[list[Entry]]:
    """Distribute entries over files of at most `limit` bytes of data, in their order.

    A larger tensor gets a file of its own; the second shard of a tensor never shares a file with
    the first. A file ends, too, where a reader would not take a larger header.
    """
    levels: list[list[Entry]] = []
    count: dict[str, int] = {}
    for entry in entries:
        level = count.get(entry.name, 0)
        count[entry.name] = level + 1
        if level == len(levels):
            levels.append([])
        levels[level].append(entry)
    files: list[list[Entry]] = []
    for level in levels:
        sharded = any(isinstance(entry, ShardEntry) for entry in level)
        # Quoted text inside of text: offsets may take twice their length.
        header = MAX_HEADER - _SLACK - (2 * MAX_INFO if sharded else 0)
        most = (limit, MAX_INFO, header, MEMORY - _SLACK, MAX_TENSORS)
        sums: tuple[int, ...] | None = None
        for entry in level:
            costs = _costs(entry, sharded=sharded)
            sums = None if sums is None else tuple(map(operator.add, sums, costs))
            if sums is None or any(map(operator.gt, sums, most)):
                files.append([])
                sums = costs
            files[-1].append(entry)
    return files


def _costs(entry: Entry, *, sharded: bool) -> tuple[int, ...]:
    """Return what an entry adds to what is bounded in a file: data, offsets, header, parsing."""
    rank = len(entry.shape)
    return (
        entry.nbytes,
        _info_bytes(entry) if sharded else 0,
        _ENTRY + len(dumps(entry.name)) + _DIMENSION * rank,
        3 * CONTAINER_BYTES + (5 + rank) * ELEMENT_BYTES,
        1,
    )


def check_file_count(count: int, limit: int) -> None:
    """Refuse a save of more files than a reader opens.

    Raises:
        UnsupportedStateError: With the number and the remedy.
    """
    if count > MAX_FILES:
        raise UnsupportedStateError(
            "the state",
            f"takes {count} files of at most {limit} bytes of tensors, the limit is {MAX_FILES}; "
            "save with a greater max_shard_size",
        )


def _info_bytes(entry: Entry) -> int:
    return len(
        sharding_info({entry.name: entry.shape}, {entry.name: (1 << 48,) * len(entry.shape)})
    )


def base_of(part: str, number: int, total: int) -> str:
    """Return the name of file `number` (from 0) of the `total` files of a part.

    >>> base_of("optim", 0, 8)
    'optim-00001-of-00008.safetensors'
    """
    if total == 1:
        return f"{part}.safetensors"
    return f"{part}-{number + 1:05d}-of-{total:05d}.safetensors"


def plan_file(part: str, number: int, total: int, entries: Sequence[Entry]) -> PlannedFile:
    """Lay out file `number` (from 0) of the `total` files of a part."""
    return lay_out_file(part, base_of(part, number, total), entries)


def lay_out_file(part: str, base: str, entries: Sequence[Entry]) -> PlannedFile:
    """Lay out a file of a part."""
    offsets = {entry.name: entry.offset for entry in entries if isinstance(entry, ShardEntry)}
    metadata = {"format": "pt", "optim_checkpoint": dumps({"part": part, "v": 1}).decode()}
    if offsets:
        shapes = {entry.name: entry.shape for entry in entries}
        metadata |= {"DCP_VERSION": "1.0", SHARDING: sharding_info(shapes, offsets)}
    return PlannedFile(part, base, lay_out(entries, metadata), offsets)


def plan_files(parts: Mapping[str, Sequence[Entry]], limit: int) -> list[PlannedFile]:
    """Lay out the files of a save by one process."""
    planned: list[PlannedFile] = []
    for part, entries in parts.items():
        groups = split(entries, limit)
        check_file_count(len(planned) + len(groups), limit)
        planned += [plan_file(part, i, len(groups), group) for i, group in enumerate(groups)]
    return planned


def sharding_info(shapes: Mapping[str, Shape], offsets: Mapping[str, Offset]) -> str:
    """Return the offsets of a file's tensors as torch's distributed reader expects them."""
    return dumps(
        {
            key: {"saved_offsets": list(offsets.get(key, (0,) * len(shape)))}
            for key, shape in shapes.items()
        }
    ).decode()


def index_name(part: str) -> str:
    """Return the name of the index of a part."""
    return f"{part}.safetensors.index.json"


def index_of(files: Iterable[tuple[str, Mapping[str, int]]]) -> bytes:
    """Return the index of a part in Hugging Face's form.

    Args:
        files: The name of each file in the part's folder, and the bytes of each of its tensors.
    """
    weights: dict[str, str] = {}
    total = 0
    for base, sizes in files:
        weights.update(dict.fromkeys(sizes, base))
        total += sum(sizes.values())
    return dumps({"metadata": {"total_size": total}, "weight_map": weights})
