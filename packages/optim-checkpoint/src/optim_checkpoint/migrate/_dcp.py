"""Folders of `torch.distributed.checkpoint`, read without its pickles and written by it.

Its own reader unpickles ``.metadata`` and loads everything that is no tensor with
``weights_only=False``; here the first goes through an unpickler that knows the classes of the
format and nothing else, and the second through `load`.
"""

import io
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save

from optim_checkpoint._boxes import grid_fault
from optim_checkpoint._errors import CorruptCheckpointError, UnsupportedStateError, shown
from optim_checkpoint.migrate import _torch_save
from optim_checkpoint.migrate._found import Found
from optim_checkpoint.migrate._safe import load

METADATA = ".metadata"
_CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        *("Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata"),
        *("TensorProperties", "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING"),
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", *(str(d).removeprefix("torch.") for d in vars(torch).values()
                        if isinstance(d, torch.dtype))},
    "collections": {"OrderedDict", "defaultdict"},
    "builtins": {"dict", "list", "tuple", "set", "int", "str"},
}  # fmt: skip
_PATHS = {"PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath", "Path"}
# What reading a description that was damaged runs into.
_FAULTS = (pickle.UnpicklingError, EOFError, LookupError, TypeError, AttributeError, ValueError,
           ImportError, RuntimeError, OverflowError, MemoryError)  # fmt: skip
_DIGITS = re.compile(r"(0|[1-9][0-9]*)\Z", re.ASCII)


class _Unpickler(pickle.Unpickler):
    """Makes what describes a checkpoint, and nothing else; a path becomes its text."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("pathlib", "pathlib._local") and name in _PATHS:
            return _path
        if name not in _CLASSES.get(module, ()):
            raise UnsupportedStateError(
                METADATA, f"holds a pickled {shown(f'{module}.{name}')[1:-1]}; nothing was run"
            )
        return super().find_class(module, name)


def _path(*parts: str) -> str:
    return "/".join(parts)


def read(source: Path, keys: _torch_save.Keys) -> Found:
    """Read a folder of `dcp.save`, of any number of processes; tensors come back whole.

    Raises:
        UnsupportedStateError: If it holds pickled objects or code, or extensions of the format.
        CorruptCheckpointError: If it is damaged.
    """
    try:
        metadata = _Unpickler(io.BytesIO((source / METADATA).read_bytes())).load()
        paths = metadata.planner_data or {}
        tree: dict[Any, Any] = {}
        for key, value in _entries(source, metadata):
            _put(tree, tuple(paths.get(key, (key,))), value, source)
    except _FAULTS as error:
        detail = f"is damaged: {type(error).__name__} ({shown(str(error))})"
        raise CorruptCheckpointError(f"{source}/{METADATA}", detail) from None
    loaded = _settled(tree)
    notes = _numbered(loaded)
    found = _torch_save.sort_parts(loaded, source, keys, "dcp")
    found.notes += notes
    # The entries come in the order in which processes were given them.
    found.ordered = False
    return found


def _entries(source: Path, metadata: Any) -> Any:
    places: dict[str, list[Any]] = {}
    for index, place in metadata.storage_data.items():
        places.setdefault(index.fqn, []).append((index, place))
    for key, what in metadata.state_dict_metadata.items():
        if not hasattr(what, "size"):
            ((_, place),) = places[key]
            yield key, load(_bytes(source, place), f"{source}, {shown(key)}")
            continue
        yield key, _whole(source, key, what, places.get(key, []))


def _whole(source: Path, key: str, what: Any, places: list[Any]) -> torch.Tensor:
    """Put a tensor together; its parts have to cover it once, without a hole."""
    shape, dtype = tuple(what.size), what.properties.dtype
    where = f"{source}, {shown(key)}"
    parts = [
        (index.offset or (0,) * len(shape), load(_bytes(source, place), where))
        for index, place in places
    ]
    if any(not isinstance(p, torch.Tensor) or p.ndim != len(shape) for _, p in parts):
        raise CorruptCheckpointError(where, "has a part that is of another kind")
    boxes = [(tuple(offset), tuple(part.shape)) for offset, part in parts if part.numel()]
    fault = grid_fault(shape, boxes) if 0 not in shape else None
    if fault is not None or any(part.dtype != dtype for _, part in parts):
        raise CorruptCheckpointError(where, fault or f"has a part that is not {dtype}")
    if len(parts) == 1:
        return parts[0][1]
    tensor = torch.empty(shape, dtype=dtype)
    for offset, part in parts:
        tensor[tuple(slice(o, o + n) for o, n in zip(offset, part.shape, strict=True))] = part
    return tensor


def _bytes(source: Path, place: Any) -> io.BytesIO:
    name = str(place.relative_path)
    if getattr(place, "transform_descriptors", None):
        raise UnsupportedStateError(f"{source}/{name}", "is compressed by an extension of DCP")
    if Path(name).name != name:
        raise CorruptCheckpointError(str(source), f"{shown(name)} is not a file in the folder")
    try:
        with (source / name).open("rb") as file:
            file.seek(place.offset)
            raw = file.read(place.length)
    except FileNotFoundError:
        raise CorruptCheckpointError(f"{source}/{name}", "is missing") from None
    if len(raw) != place.length:
        raise CorruptCheckpointError(f"{source}/{name}", "is truncated")
    return io.BytesIO(raw)


def _put(tree: dict[Any, Any], path: tuple[Any, ...], value: Any, source: Path) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
        if type(tree) is not dict:
            raise CorruptCheckpointError(str(source), f"{shown(path)} is below a value")
    tree[path[-1]] = value


def _settled(tree: Any) -> Any:
    """Make lists of what has whole numbers for keys, which DCP keeps for list indices alone."""
    if type(tree) is not dict:
        return tree
    values = {key: _settled(value) for key, value in tree.items()}
    if values and all(type(key) is int for key in values):
        return [values[key] for key in sorted(values)]
    return values


def _numbered(loaded: dict[Any, Any]) -> list[str]:
    """Give dicts back the whole numbers that DCP made text of, where they cannot be anything else.

    Those are the numbers of an optimizer's parameters and the milestones of a MultiStepLR.
    """
    notes: list[str] = []
    for name, value in loaded.items():
        role = _torch_save.role_of(value)
        inner = {"optimizer": "state", "scheduler": "milestones"}.get(role or "")
        table = value.get(inner) if inner else None
        numbered = role == "scheduler" or not any(
            isinstance(each, str)
            for group in (value.get("param_groups", ()) if role else ())
            for each in group["params"]
        )
        if type(table) is dict and numbered and table and all(map(_is_number, table)):
            value[inner] = {int(key): item for key, item in table.items()}
            notes.append(f"{name}: the keys of its {inner} are numbers again, DCP made them text")
    return notes


def _is_number(key: object) -> bool:
    return isinstance(key, str) and _DIGITS.match(key) is not None


def write(found: Found, target: Path) -> None:
    """Write a folder that `dcp.load` loads.

    The optimizer's state is by parameter name, as `get_state_dict` of
    `torch.distributed.checkpoint.state_dict` has it and `set_state_dict` wants it.
    """
    document = _torch_save.document(found)
    for name, state in found.optimizers.items():
        names = found.names[name]
        numbers = [n for group in state["param_groups"] for n in group["params"]]
        by_number = dict(zip(numbers, (n for group in names for n in group), strict=True))
        document[f"optimizer/{name}" if name else "optimizer"] = {
            **state,
            "state": {by_number.get(n, n): slots for n, slots in state["state"].items()},
            "param_groups": [
                {**group, "params": listed}
                for group, listed in zip(state["param_groups"], names, strict=True)
            ],
        }
    with warnings.catch_warnings():
        # That nothing is distributed here.
        warnings.simplefilter("ignore")
        save(document, storage_writer=FileSystemWriter(target), no_dist=True)
