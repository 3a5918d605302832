"""Checkpoints of Lightning's Trainer: one file of `torch.save`."""

from pathlib import Path
from typing import Any

import torch

from optim_checkpoint._errors import CorruptCheckpointError, UnsupportedStateError
from optim_checkpoint.migrate._found import Found, by_place
from optim_checkpoint.migrate._safe import load, mapping

VERSION = "pytorch-lightning_version"
# The key of `extra` that keeps what only Lightning knows what to do with, and of the scaler there.
LIGHTNING, _SCALER = "lightning", "MixedPrecision"
_PARTS = ("state_dict", "optimizer_states", "lr_schedulers")


def read(source: Path) -> Found:
    """Read a `.ckpt` of Lightning.

    Several optimizers are named by their place, as Lightning has them: "0", "1", and so on.

    Raises:
        UnsupportedStateError: If it holds pickled objects, as hyperparameters may be.
        CorruptCheckpointError: If it is damaged or of another kind.
    """
    return sort_parts(mapping(load(source), str(source)), source)


def sort_parts(loaded: dict[Any, Any], source: Path) -> Found:
    """Find the parts among what was loaded."""
    step = loaded.get("global_step")
    if VERSION not in loaded or type(step) is not int:
        raise CorruptCheckpointError(str(source), "is no checkpoint of Lightning's Trainer")
    found = Found("lightning", step, dict(mapping(loaded.get("state_dict"), str(source))))
    found.optimizers = by_place(list(loaded.get("optimizer_states", [])))
    found.schedulers = by_place(list(loaded.get("lr_schedulers", [])))
    rest = {key: value for key, value in loaded.items() if key not in _PARTS}
    if _SCALER in rest:
        found.scalers = {"": rest.pop(_SCALER)}
    found.extra = {LIGHTNING: rest}
    found.left_out.append("generators: Lightning saves none")
    return found


def write(found: Found, target: Path) -> None:
    """Write a file for ``Trainer.fit(..., ckpt_path=target)``.

    Raises:
        UnsupportedStateError: If it is not from Lightning, whose loops keep where a run is.
    """
    torch.save(document(found), target)


def document(found: Found) -> dict[str, Any]:
    """Return what Lightning loads; what does not go with it is noted in `found`."""
    rest = dict(found.extra.get(LIGHTNING) or {})
    if VERSION not in rest or "loops" not in rest:
        raise UnsupportedStateError(
            "extra",
            f"has no {LIGHTNING!r} as an import from Lightning makes it, and without its loops "
            "Lightning would begin to count anew: export to torch, and load the model from that",
        )
    if rest.get("global_step") != found.step:
        raise UnsupportedStateError(
            f"extra {LIGHTNING!r}",
            f"counts {rest.get('global_step')} steps and the checkpoint {found.step}: Lightning "
            "goes by its own loops; export to torch, and load the model from that",
        )
    found.left_out += [
        f"extra {key}: Lightning has no place for it" for key in found.extra if key != LIGHTNING
    ]
    if found.rng is not None:
        found.left_out.append("generators: Lightning loads none")
    rest["state_dict"] = found.model
    rest["optimizer_states"] = list(found.optimizers.values())
    rest["lr_schedulers"] = list(found.schedulers.values())
    if found.scalers:
        rest[_SCALER] = next(iter(found.scalers.values()))
    return rest
