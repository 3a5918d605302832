"""Data: what the wheel carries, and readers for full-size sets that it does not."""

from optim_bench.tasks.data._fetch import DOWNLOADS, Download, FetchError, RemoteFile, fetch
from optim_bench.tasks.data._files import (
    MissingDataError,
    find,
    find_shards,
    read_cifar10,
    read_idx,
    read_image_parquet,
    read_tokens,
)
from optim_bench.tasks.data._vendored import SOURCES, DamagedDataError, Source, load, notice

__all__ = [
    "DOWNLOADS",
    "SOURCES",
    "DamagedDataError",
    "Download",
    "FetchError",
    "MissingDataError",
    "RemoteFile",
    "Source",
    "fetch",
    "find",
    "find_shards",
    "load",
    "notice",
    "read_cifar10",
    "read_idx",
    "read_image_parquet",
    "read_tokens",
]
