# pyright: strict
"""Writing parts of a generation as one plain safetensors file, verified on the way."""

import os
import secrets
from collections.abc import Mapping

from optim_checkpoint import _fs, _place, _reading
from optim_checkpoint._collect import Staging, read_staged
from optim_checkpoint._errors import (
    CheckpointExistsError,
    CheckpointNotFoundError,
    CheckpointWriteError,
)
from optim_checkpoint._folder import StrPath, check_step
from optim_checkpoint._generation import Generation
from optim_checkpoint._header import TensorInfo
from optim_checkpoint._json import as_array, as_object
from optim_checkpoint._select import candidates
from optim_checkpoint._shard import Entry, lay_out, write_shard
from optim_checkpoint._urls import local_file


def export(
    path: StrPath,
    target: StrPath,
    step: int | None = None,
    *,
    part: str = "model",
    force: bool = False,
) -> int:
    """Write one part of a generation as a plain safetensors file.

    Every byte is verified before the file appears; it is synced and then renamed into place.
    Tied tensors of a torch model are written under each of their names, for a strict load.

    Args:
        path: The folder of the run.
        target: The file to write.
        step: The step; None is the newest.
        part: "model", "optim" or "train".
        force: Whether to replace an existing file.

    Returns:
        The number of tensors written.

    Raises:
        CheckpointNotFoundError: If there is no such step, or it has no such part.
        CorruptCheckpointError: If the generation is damaged.
        CheckpointReadError: If something of it cannot be read.
        CheckpointExistsError: If `target` exists and `force` is false.
        CheckpointWriteError: If it cannot be written.
    """
    goal = local_file(target)
    if goal.exists() and not force:
        raise CheckpointExistsError(f"{goal} exists; pass --force to replace it")
    wanted = None if step is None else check_step(step)

    def read() -> tuple[Mapping[str, TensorInfo], Mapping[str, memoryview], Mapping[str, str]]:
        with _place.opened(path, candidates(path, wanted)[0]) as generation:
            infos = generation.tensors(part)
            if not infos:
                raise CheckpointNotFoundError(f"step {generation.name.step} has no part {part}")
            staging = Staging.of(generation, part)
            for key, info in infos.items():
                staging.memory[key] = memoryview(bytearray(info.nbytes))
            read_staged(generation, staging)
            names = _names(generation, infos) if part == "model" else {key: key for key in infos}
            return infos, staging.memory, names

    infos, memory, names = _reading.afresh(read)
    entries = [
        Entry(name, infos[key].dtype, infos[key].shape, lambda key=key: memory[key])
        for name, key in names.items()
    ]
    try:
        with _fs.opened(_fs.open_folder(goal.parent)) as folder:
            _write(folder, goal.name, entries)
    except OSError as error:
        raise CheckpointWriteError(f"{goal} was not written: {error.strerror}") from error
    return len(entries)


def _names(generation: Generation, infos: Mapping[str, TensorInfo]) -> dict[str, str]:
    """Return the names to write with their keys: a tensor that is tied has a name for each owner.

    Safetensors has no aliases, and a strict load wants every name.
    """
    names: dict[str, str] = {}
    for item in as_array(generation.manifest.sections.get("model")) or []:
        pair = as_array(item) or [None, None]
        key = (as_object(pair[1]) or {}).get("tensor")
        if isinstance(pair[0], str) and isinstance(key, str) and key in infos:
            names[pair[0]] = key
    rest = infos.keys() - names.values()
    return names | {key: key for key in infos if key in rest and key not in names}


def _write(folder: int, name: str, entries: list[Entry]) -> None:
    temporary = f".{name}.{secrets.token_hex(8)}"
    try:
        write_shard(lay_out(entries, {"format": "pt"}), temporary, folder)
        _fs.ops.rename(temporary, name, folder)
    except BaseException:
        if temporary in os.listdir(folder):
            _fs.ops.remove(temporary, folder)
        raise
    _fs.ops.sync(folder)
