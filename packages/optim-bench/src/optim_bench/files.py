"""Strict JSON, and files that are there whole or not at all."""

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from optim_bench.errors import BenchError, os_reason


def read_json(path: Path) -> dict[str, Any]:
    """Read an object from a strict-JSON file.

    Raises:
        ValueError: it is not strict JSON, or no object.
    """
    data = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    if not isinstance(data, dict):
        raise ValueError(f"it holds a {type(data).__name__}, not an object")  # noqa: TRY004
    return data


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write strict JSON, the same bytes for the same data, atomically."""
    text = json.dumps(data, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)
    write_bytes(path, (text + "\n").encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all.

    Raises:
        BenchError: the folder cannot be written.
    """
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise BenchError(
            f"cannot write {path} ({os_reason(error)}); choose another folder"
        ) from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp's 0600 would hide results from the rest of a group.
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException as error:  # Ctrl-C, too
        with contextlib.suppress(OSError):
            Path(name).unlink()
        if not isinstance(error, OSError):
            raise
        raise BenchError(
            f"cannot write {path} ({os_reason(error)}); free some space and repeat the command: "
            "every file written before is whole and kept"
        ) from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not strict JSON")
