"""Importing: which format a source is of, and what reads it."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from optim_checkpoint._api import steps
from optim_checkpoint._errors import CheckpointExistsError, CheckpointNotFoundError
from optim_checkpoint._folder import StrPath, check_step
from optim_checkpoint._urls import local_file
from optim_checkpoint.migrate._found import Found, Report

FORMATS = ("torch", "lightning", "trainer", "accelerate", "dcp", "orbax")
_ORBAX = {"_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt"}


def format_of(source: Path) -> str:
    """Say which tool wrote a file or folder, by its names; a file is "torch" until it is opened.

    Raises:
        CheckpointNotFoundError: If it is not there.
        ValueError: If it is of none of them.
    """
    if not source.exists():
        raise CheckpointNotFoundError(f"{source} is not there")
    if not source.is_dir():
        return "torch"
    names = {each.name for each in source.iterdir()}
    if "manifest.json" in names or any(name.startswith("step-") for name in names):
        raise ValueError(f"{source} is of optim-checkpoint already")
    if "trainer_state.json" in names:
        return "trainer"
    if ".metadata" in names:
        return "dcp"
    if names & {"random_states_0.pkl", "optimizer.bin", "scheduler.bin"}:
        return "accelerate"
    inner = {p.name for name in names if name.isdecimal() for p in (source / name).glob("*")}
    if (names | inner) & _ORBAX:
        return "orbax"
    raise ValueError(
        f"{source} is no folder of transformers' Trainer, Accelerate, DCP or Orbax: none of the "
        "files that tell them is in it"
    )


def import_checkpoint(
    source: StrPath,
    path: StrPath,
    step: int | None = None,
    *,
    format: str | None = None,  # noqa: A002 - what it is called everywhere
    optimizer: Any = None,
    names: Any = None,
    model: Any = None,
    ties: Mapping[str, str] | None = None,
    keys: Mapping[str, Any] | None = None,
    leave_out: Collection[str] = (),
    template: Any = None,
    replace: bool = False,
) -> Report:
    """Import a checkpoint of another tool as a step of a run: exact, by name, and nothing run.

    Files are opened with ``weights_only=True``; what only running pickled code could load is
    refused, or listed where it is a file that nothing depends on. Tensors keep dtypes and bits.

    An optimizer's state in files of torch is by number. Names are taken where they are certain:
    from `names` or live objects, from the state itself (DCP's ``get_state_dict``, ``param_names``),
    or, for one group of as many parameters as the model has entries, none of them tied and none a
    buffer, from the order of the state dict, which the report says. Anything else is refused.

    Args:
        source: The file or folder.
        path: The folder of the run, created where missing, or the URL of a store.
        step: The training step; None where the source says it (Lightning, Trainer, a folder of
            Orbax's CheckpointManager, what `export_checkpoint` wrote).
        format: "torch", "lightning", "trainer", "accelerate", "dcp" or "orbax"; None looks.
        optimizer: The class of the optimizer, which no file of torch has: "torch.optim.AdamW", the
            class, or with `model` an optimizer built as in the run. Of several a mapping of names
            to such.
        names: The parameters' names, group by group, as `names_of` returns them, or in one list. Of
            several optimizers a mapping.
        model: A module of the same architecture: gives names and ties, its values are not used.
        ties: Names of tied parameters that the source has under another name only, by that one:
            ``{"lm_head.weight": "transformer.wte.weight"}``; `model` gives them as well.
        keys: Of a dict in torch or DCP, which keys are "model", "optimizer", "scheduler" and
            "scaler"; several models are a list. Of Orbax, which are "params", "opt_state", "rng".
        leave_out: Parts or keys of `extra` that are not wanted.
        template: For Orbax, a tree like the one that was saved, for the classes of an optax state.
        replace: Whether a step that exists gets a newer generation instead of an error.

    Returns:
        What came along, what did not, and what was assumed.

    Raises:
        CheckpointError: If the source is in a store.
        CheckpointNotFoundError: If the source, or a file that it needs, is not there.
        CorruptCheckpointError: If it is truncated or damaged.
        UnsupportedStateError: If it holds pickled objects, or something is not certain.
        CheckpointExistsError: If the step exists and `replace` is false.
        ValueError: If an argument is out of its range or of no use for this format.

    Example:
        >>> import os, tempfile, torch
        >>> folder = tempfile.mkdtemp()
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> model(torch.ones(1, 4)).sum().backward()
        >>> optimizer.step()
        >>> old = os.path.join(folder, "old.pt")
        >>> torch.save({"net": model.state_dict(), "opt": optimizer.state_dict(), "epoch": 7}, old)
        >>> report = import_checkpoint(old, folder, 7, optimizer=torch.optim.AdamW)
        >>> report.holds
        ('model: 2 entries', 'optimizer: state of 2 of 2 parameters in 1 groups', 'extra: epoch')
        >>> report.notes
        ("optimizer: named in the order of the model's state dict",)
        >>> report.left_out
        ('generators: the source has none',)
    """
    origin = local_file(source)
    kind = format_of(origin) if format is None else format
    if kind not in FORMATS:
        raise ValueError(f"format is {kind!r}; it must be one of {', '.join(FORMATS)}")
    if not origin.exists():
        raise CheckpointNotFoundError(f"{origin} is not there")
    if origin.is_dir() == (kind in ("torch", "lightning")):
        raise ValueError(
            f"{origin} is {'a folder' if origin.is_dir() else 'no folder'}, not {kind}"
        )
    if step is not None:
        _check_free(path, check_step(step), replace=replace)
    given = dict(keys or {})
    if kind == "orbax":
        _refuse(kind, optimizer=optimizer, names=names, model=model, ties=ties)
        from optim_checkpoint.migrate import _orbax

        return _orbax.import_tree(origin, path, step, given, leave_out, template, replace=replace)
    _refuse(kind, template=template)
    found = _read(origin, kind, given, named=format is not None)
    number = found.step if step is None else step
    if number is None:
        raise ValueError(f"{origin} does not say which step it is of: give step (--step)")
    found.drop(leave_out)
    _check_free(path, check_step(number), replace=replace)
    from optim_checkpoint.migrate._write import write

    written = write(
        found,
        path,
        number,
        optimizer=optimizer,
        names=names,
        model=model,
        ties=ties or {},
        replace=replace,
    )
    holds = found.holds()
    return Report(
        written, number, found.format, tuple(holds), tuple(found.left_out), tuple(found.notes)
    )


def _read(origin: Path, kind: str, keys: dict[str, Any], *, named: bool) -> Found:
    # Each needs torch, which an import from Orbax does without.
    from optim_checkpoint.migrate import _accelerate, _dcp, _lightning, _torch_save, _trainer
    from optim_checkpoint.migrate._safe import load, mapping

    if kind == "dcp":
        return _dcp.read(origin, keys)
    if kind == "torch":
        loaded = mapping(load(origin), str(origin))
        if named or _lightning.VERSION not in loaded:
            return _torch_save.sort_parts(loaded, origin, keys)
        _refuse("lightning", keys=keys)
        return _lightning.sort_parts(loaded, origin)
    _refuse(kind, keys=keys)
    readers = {
        "lightning": _lightning.read,
        "trainer": _trainer.read,
        "accelerate": _accelerate.read,
    }
    return readers[kind](origin)


def _refuse(kind: str, **given: Any) -> None:
    for name, value in given.items():
        if value is not None and value != {}:
            raise ValueError(f"{name} has no meaning for {kind}")


def _check_free(path: StrPath, step: int, *, replace: bool) -> None:
    """Refuse early what the commit would refuse after everything was read."""
    if not replace and step in steps(path):
        raise CheckpointExistsError(
            f"{path} already holds step {step}; pass replace=True (--replace) to write a newer "
            "generation of it"
        )
