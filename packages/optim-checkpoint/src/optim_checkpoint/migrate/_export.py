"""Exporting: a step of a run as a file or folder of another tool."""

import os
import secrets
import shutil
from collections.abc import Collection
from pathlib import Path

from optim_checkpoint._errors import CheckpointExistsError, CheckpointWriteError
from optim_checkpoint._folder import StrPath, check_step
from optim_checkpoint._fs import opened
from optim_checkpoint._urls import local_file
from optim_checkpoint.migrate._found import Report

FORMATS = ("torch", "lightning", "dcp")


def export_checkpoint(
    path: StrPath,
    target: StrPath,
    step: int | None = None,
    *,
    format: str,  # noqa: A002 - what it is called everywhere
    leave_out: Collection[str] = (),
    force: bool = False,
) -> Report:
    """Write a step of a run for another tool; every byte is verified before anything is written.

    - "torch": a file for ``torch.load(target, weights_only=True)`` with ``model``, ``optimizer``,
      ``scheduler``, ``scaler`` (of several, ``optimizer/NAME``), ``rng``, ``extra``, ``step``; the
      optimizer's state is by number, as torch has it, and ``optimizer_names`` has the names.
      ``rng`` has what `torch.set_rng_state`, `random.setstate` and `numpy.random.set_state` take.
    - "lightning": a ``.ckpt`` for ``Trainer.fit(..., ckpt_path=target)``, of a step that was
      imported from Lightning: only Lightning knows where its loops are.
    - "dcp": a folder for ``torch.distributed.checkpoint.load``, with the same keys; the optimizer's
      state is by parameter name, as ``get_state_dict`` has it.

    Args:
        path: The folder of the run.
        target: The file or folder to write.
        step: The step; None is the newest that verifies.
        format: "torch", "lightning" or "dcp".
        leave_out: Parts or keys of `extra` that are not wanted.
        force: Whether to replace an existing file; a folder is never replaced.

    Returns:
        What was written, and what was not.

    Raises:
        CheckpointNotFoundError: If there is no such step.
        CorruptCheckpointError: If it is damaged.
        UnsupportedStateError: If it was saved by JAX, or the other format cannot hold it.
        CheckpointError: If `target` is in a store.
        CheckpointExistsError: If `target` exists.
        CheckpointWriteError: If it cannot be written.
        ValueError: If `format` is none of these.
    """
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}; it must be one of {', '.join(FORMATS)}")
    goal = local_file(target)
    if goal.exists() and (format == "dcp" or not force or goal.is_dir()):
        advice = "" if format == "dcp" else "; pass --force to replace it"
        raise CheckpointExistsError(f"{goal} exists{advice}")
    if not goal.parent.is_dir():
        raise CheckpointWriteError(f"{goal} was not written: {goal.parent} is no folder")
    from optim_checkpoint.migrate import _dcp, _held, _lightning, _torch_save
    from optim_checkpoint.migrate._generators import tensors_for

    found = _held.read(path, None if step is None else check_step(step))
    found.drop(leave_out)
    found.extra = tensors_for(found.extra, found.notes)
    write = {"torch": _torch_save.write, "lightning": _lightning.write, "dcp": _dcp.write}[format]
    temporary = goal.parent / f".{goal.name}.{secrets.token_hex(8)}"
    try:
        write(found, temporary)
        for written in (*temporary.rglob("*"), temporary):
            _sync(written)
        temporary.rename(goal)
        _sync(goal.parent)
    except OSError as error:
        raise CheckpointWriteError(f"{goal} was not written: {error.strerror}") from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        temporary.unlink(missing_ok=True)
    number = found.step or 0
    return Report(
        goal, number, format, tuple(found.holds()), tuple(found.left_out), tuple(found.notes)
    )


def _sync(path: Path) -> None:
    with opened(os.open(path, os.O_RDONLY)) as descriptor:
        os.fsync(descriptor)
