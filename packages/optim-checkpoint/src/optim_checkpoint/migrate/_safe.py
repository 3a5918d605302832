"""Opening files of other tools without running anything that is in them."""

import json
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from optim_checkpoint._errors import (
    CheckpointNotFoundError,
    CorruptCheckpointError,
    UnsupportedStateError,
    shown,
)

_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
# What pickles NumPy's arrays and scalars, from which it makes nothing else; their names differ
# between NumPy 1 and 2.
_ARRAY = np.zeros(1).__reduce__()[0]
_SCALAR = np.float64(0).__reduce__()[0]
_NUMBERS = "?bBhHiIlLqQefdFD"
_NUMPY: list[Any] = [
    *((_ARRAY, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    np.ndarray,
    np.dtype,
    *{type(np.dtype(code)) for code in _NUMBERS},
]


def load(source: Any, where: str | None = None) -> Any:
    """Load what `torch.save` wrote: tensors, arrays, numbers, text and containers, on the CPU.

    Args:
        source: A file, or something that can be read.
        where: What to call it in an error.

    Raises:
        UnsupportedStateError: If it holds pickled objects or code; none of it was run.
        CorruptCheckpointError: If it is damaged, or of another kind.
        CheckpointNotFoundError: If it is not there.
    """
    name = str(source) if where is None else where
    try:
        with torch.serialization.safe_globals(_NUMPY), warnings.catch_warnings():
            # Of a plain pickle torch warns before it refuses.
            warnings.simplefilter("ignore")
            return torch.load(source, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointNotFoundError(f"{name} is not there") from None
    except pickle.UnpicklingError as error:
        pickled = _GLOBAL.search(str(error))
        if pickled is None:
            raise _damaged(name, error) from None
        raise UnsupportedStateError(
            name,
            f"holds a pickled {shown(pickled[1])[1:-1]}, which only running code could load; "
            "nothing was run: save what it holds as tensors, numbers and text",
        ) from None
    except (EOFError, LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise _damaged(name, error) from None


def load_safetensors(file: Path) -> dict[str, torch.Tensor]:
    """Load a plain safetensors file.

    Raises:
        CorruptCheckpointError: If it is damaged.
        UnsupportedStateError: If the package safetensors, which wrote it, is not installed.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ModuleNotFoundError:
        raise UnsupportedStateError(
            str(file), "needs safetensors, which is not installed: pip install safetensors"
        ) from None
    try:
        return load_file(file)
    except SafetensorError as error:
        raise _damaged(str(file), error) from None


def load_json(file: Path) -> Any:
    """Load a JSON file.

    Raises:
        CorruptCheckpointError: If it is none.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise _damaged(str(file), error) from None


def _damaged(name: str, error: Exception) -> CorruptCheckpointError:
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return CorruptCheckpointError(name, f"is truncated, damaged or of another kind: {shown(text)}")


def mapping(value: object, where: str) -> dict[Any, Any]:
    """Return a value that has to be a dict.

    Raises:
        CorruptCheckpointError: If it is none.
    """
    if not isinstance(value, dict):
        raise CorruptCheckpointError(where, f"holds a {type(value).__name__}, not a dict")
    return value
