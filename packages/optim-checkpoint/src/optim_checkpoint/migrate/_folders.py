"""Folders of transformers' Trainer and of Accelerate: a file for each part."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from optim_checkpoint._errors import (
    CheckpointError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    UnsupportedStateError,
)
from optim_checkpoint.migrate._found import Found
from optim_checkpoint.migrate._safe import load, load_json, load_safetensors, mapping

_INDEX = ".index.json"


def load_model(folder: Path, stem: str, found: Found, pickled: str = "pytorch_model") -> set[str]:
    """Load a model from safetensors or `torch.save`, in one file or several.

    Args:
        folder: The folder.
        stem: What a file of safetensors is called, without its suffix.
        found: Receives the entries.
        pickled: What a file of `torch.save` is called, without its suffix.

    Returns:
        The names of the files it is in.

    Raises:
        CheckpointNotFoundError: If there is none.
    """
    loaders: tuple[tuple[str, Callable[[Path], Any]], ...] = (
        (f"{stem}.safetensors", load_safetensors),
        (f"{pickled}.bin", load),
    )
    for name, loader in loaders:
        if (folder / name).is_file():
            found.model |= mapping(loader(folder / name), str(folder / name))
            # A file of safetensors is sorted, by dtype and name.
            found.ordered = loader is load
            return {name}
        index = folder / f"{name}{_INDEX}"
        if index.is_file():
            places = mapping(mapping(load_json(index), str(index)).get("weight_map"), str(index))
            files = sorted({Path(str(file)).name for file in places.values()})
            for file in files:
                found.model |= mapping(loader(folder / file), str(folder / file))
            if found.model.keys() != places.keys():
                raise CorruptCheckpointError(str(index), "lists other entries than its files have")
            found.ordered = False
            return {index.name, *files}
    adapter = "adapter_model.safetensors"
    advice = (
        f"; {adapter} is a part of a model, by names of PEFT's own"
        if (folder / adapter).is_file()
        else ""
    )
    raise CheckpointNotFoundError(f"{folder} has no {stem}.safetensors, nor {pickled}.bin{advice}")


def load_each(folder: Path, names: Iterator[str]) -> dict[str, Any]:
    """Load files of `torch.save`, for as long as the next one is there, by file name."""
    result: dict[str, Any] = {}
    for name in names:
        if not (folder / name).is_file():
            break
        result[name] = load(folder / name)
    return result


def take_rest(folder: Path, used: set[str], found: Found, skip: dict[str, str]) -> None:
    """Load the files that nothing else took into `extra`, or list why they stay behind.

    Args:
        folder: The folder.
        used: The files that were taken.
        found: Receives them.
        skip: Why a file is not even looked at, by name.
    """
    for file in sorted(folder.iterdir()):
        name = file.name
        if name in used:
            continue
        if name in skip:
            found.left_out.append(f"{name}: {skip[name]}")
        elif file.is_file() and file.suffix == ".json":
            found.extra[name.removesuffix(".json")] = load_json(file)
        elif file.is_file() and file.suffix in (".bin", ".pt", ".pth", ".pkl"):
            try:
                found.extra[name] = load(file)
            except CheckpointError as error:
                found.left_out.append(f"{name}: {error}")
        else:
            found.left_out.append(f"{name}: is not training state that can be read here")


def one_process(folder: Path, pattern: str, found: Found) -> None:
    """List the generators of other processes, which have no place in a checkpoint of one."""
    others = sorted(file.name for file in folder.glob(pattern))
    for name in others:
        found.left_out.append(f"{name}: generators of another process; those of process 0 are kept")


def tensor_or_none(state: dict[Any, Any], key: str) -> Any:
    """Return the generators of devices, which are tensors or a list of them."""
    value = state.get(key)
    known = isinstance(value, torch.Tensor) or (
        isinstance(value, list) and all(isinstance(each, torch.Tensor) for each in value)
    )
    if value is not None and not known:
        raise UnsupportedStateError(key, f"is a {type(value).__name__}, not tensors")
    return value
