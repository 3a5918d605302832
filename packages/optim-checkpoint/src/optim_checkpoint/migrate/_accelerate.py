"""Folders of `Accelerator.save_state`."""

from itertools import chain, count
from pathlib import Path

from optim_checkpoint._errors import UnsupportedStateError
from optim_checkpoint.migrate._folders import (
    load_each,
    load_model,
    one_process,
    take_rest,
    tensor_or_none,
)
from optim_checkpoint.migrate._found import Found, by_place
from optim_checkpoint.migrate._generators import generators
from optim_checkpoint.migrate._safe import load, mapping

RNG = "random_states_0.pkl"
_KNOWN = {
    *("step", "random_state", "numpy_random_seed", "torch_manual_seed", "torch_cuda_manual_seed"),
}


def read(source: Path) -> Found:
    """Read a folder that `Accelerator.save_state` wrote.

    Several optimizers and schedulers are named by their place: "0", "1", and so on. What was
    registered for checkpointing goes to `extra` under its file name. Accelerate saves the number of
    steps in no file that says which count it is, so `step` has to be given.

    Raises:
        CheckpointNotFoundError: If there is no model in it.
        UnsupportedStateError: If a part is pickled, or there are several models.
        CorruptCheckpointError: If a part is damaged.
    """
    found = Found("accelerate")
    if (source / "model_1.safetensors").is_file() or (source / "pytorch_model_1.bin").is_file():
        raise UnsupportedStateError(
            str(source), "holds several models, whose names Accelerate does not keep: import each"
        )
    used = load_model(source, "model", found)
    for stem, part in (("optimizer", found.optimizers), ("scheduler", found.schedulers)):
        names = chain([f"{stem}.bin"], (f"{stem}_{i}.bin" for i in count(1)))
        states = load_each(source, names)
        part |= by_place([mapping(v, str(source / n)) for n, v in states.items()]) if states else {}
        used |= states.keys()
    if (source / "scaler.pt").is_file():
        found.scalers[""] = mapping(load(source / "scaler.pt"), str(source / "scaler.pt"))
        used.add("scaler.pt")
    if (source / RNG).is_file():
        state = mapping(load(source / RNG), str(source / RNG))
        found.rng = generators(
            state.get("torch_manual_seed"),
            state.get("random_state"),
            state.get("numpy_random_seed"),
            tensor_or_none(state, "torch_cuda_manual_seed"),
            str(source / RNG),
        )
        found.extra["accelerate"] = {"step": state.get("step")}
        found.left_out += [f"{RNG} {key}: of another device" for key in state.keys() - _KNOWN]
        used.add(RNG)
    one_process(source, "random_states_[1-9]*.pkl", found)
    used |= {each.name for each in source.glob("random_states_[1-9]*.pkl")}
    take_rest(source, used, found, {})
    return found
