"""Data: what the wheel carries, and readers for full-size sets that it does not."""

from optim_bench.data._files import (
    MissingDataError,
    find,
    read_cifar10,
    read_idx,
    read_tokens,
)
from optim_bench.data._vendored import SOURCES, DamagedDataError, Source, load, notice

__all__ = [
    "SOURCES",
    "DamagedDataError",
    "MissingDataError",
    "Source",
    "find",
    "load",
    "notice",
    "read_cifar10",
    "read_idx",
    "read_tokens",
]
