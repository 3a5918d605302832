"""Data: what the wheel carries, and readers for full-size sets that it does not."""

from optim_bench.data._vendored import SOURCES, DamagedDataError, Source, load, notice

__all__ = ["SOURCES", "DamagedDataError", "Source", "load", "notice"]
