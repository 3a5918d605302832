"""Checkpoints of the Trainer of transformers: a folder `checkpoint-N`."""

from pathlib import Path

from optim_checkpoint._errors import CorruptCheckpointError
from optim_checkpoint.migrate._folders import load_model, one_process, take_rest, tensor_or_none
from optim_checkpoint.migrate._found import Found
from optim_checkpoint.migrate._generators import generators
from optim_checkpoint.migrate._safe import load, load_json, mapping

STATE = "trainer_state.json"
_SKIPPED = {"training_args.bin": "a pickled object of transformers; nothing of it was run"}
_KNOWN = {"python", "numpy", "cpu", "cuda"}


def read(source: Path) -> Found:
    """Read a folder that the Trainer wrote, with its optimizer, scheduler, scaler and generators.

    `trainer_state.json`, the configuration and what else can be loaded go to `extra`.

    Raises:
        CheckpointNotFoundError: If there is no model in it.
        UnsupportedStateError: If a part is pickled.
        CorruptCheckpointError: If a part is damaged.
    """
    found = Found("trainer")
    state = mapping(load_json(source / STATE), str(source / STATE))
    found.step = state.get("global_step")
    if type(found.step) is not int:
        raise CorruptCheckpointError(str(source / STATE), "has no global_step")
    used = {STATE, *load_model(source, "model", found)}
    found.extra["trainer_state"] = state
    parts = (
        ("optimizer.pt", found.optimizers),
        ("scheduler.pt", found.schedulers),
        ("scaler.pt", found.scalers),
    )
    for name, part in parts:
        if (source / name).is_file():
            part[""] = mapping(load(source / name), str(source / name))
            used.add(name)
        elif name != "scaler.pt":
            found.left_out.append(f"{name}: is not there (save_only_model)")
    alone, first = "rng_state.pth", "rng_state_0.pth"
    file = source / (alone if (source / alone).is_file() else first)
    if file.is_file():
        rng = mapping(load(file), str(file))
        found.rng = generators(
            rng.get("cpu"),
            rng.get("python"),
            rng.get("numpy"),
            tensor_or_none(rng, "cuda"),
            str(file),
        )
        found.left_out += [f"{file.name} {key}: of another device" for key in rng.keys() - _KNOWN]
        used |= {alone, first}
    one_process(source, "rng_state_[1-9]*.pth", found)
    used |= {each.name for each in source.glob("rng_state_[1-9]*.pth")}
    take_rest(source, used, found, _SKIPPED)
    return found
