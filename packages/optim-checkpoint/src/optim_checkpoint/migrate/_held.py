"""Reading a checkpoint of this package without the objects it was saved from."""

from typing import Any

from optim_checkpoint._collect import Staging, read_staged
from optim_checkpoint._errors import (
    CorruptCheckpointError,
    UnsupportedStateError,
    shown,
)
from optim_checkpoint._folder import StrPath
from optim_checkpoint._generation import Generation
from optim_checkpoint._json import as_array, as_object
from optim_checkpoint._partial import Selection
from optim_checkpoint._select import choose
from optim_checkpoint.migrate._found import Found
from optim_checkpoint.torch._named import keys_of, name_in
from optim_checkpoint.torch._optimizer import SavedOptimizer, decode_optimizer
from optim_checkpoint.torch._tensors import TorchStaging


def read(path: StrPath, step: int | None) -> Found:
    """Read and verify a generation that was saved by torch.

    Raises:
        CheckpointNotFoundError: If there is none.
        CorruptCheckpointError: If it is damaged; an older one is not taken for it.
        UnsupportedStateError: If it was not saved by torch, or by several processes each of which
            has something of its own.
    """
    return choose(path, step, _read).value


def _read(generation: Generation) -> Found:
    framework = generation.manifest.framework.get("name")
    if framework != "torch":
        raise UnsupportedStateError(
            str(generation.name), f"was saved by {shown(framework)}: only torch's can be exported"
        )
    sections = generation.manifest.sections
    staged = {p: TorchStaging(Staging.of(generation, p)) for p in ("model", "optim", "train")}
    found = Found("optim-checkpoint", generation.name.step)
    for item in as_array(sections.get("model")) or []:
        pair = as_array(item) or []
        if len(pair) != 2 or not isinstance(pair[0], str):
            raise CorruptCheckpointError(staged["model"].staging.file, "is malformed")
        found.model[pair[0]] = staged["model"].decode(pair[1])
    saved: dict[str, SavedOptimizer] = {}
    for key in keys_of("optimizer", sections):
        saved[name_in("optimizer", key)] = decode_optimizer(
            sections[key], staged["optim"], {}, generation.shards("optim"), Selection(), {}
        )
    train = as_object(sections.get("train"))
    if train is None:
        raise CorruptCheckpointError(str(generation.name), "the train section is malformed")
    _read_train(found, train, staged["train"])
    read_staged(generation, *(each.staging for each in staged.values()))
    for name, optimizer in saved.items():
        found.kinds[name] = optimizer.kind
        found.names[name] = [list(group.params) for group in optimizer.groups]
        found.optimizers[name] = _state_dict(optimizer)
    return found


def _read_train(found: Found, train: dict[str, object], staging: TorchStaging) -> None:
    ranks = as_array(train.get("ranks"))
    if ranks is not None:
        first, *others = [as_object(own) or {} for own in ranks]
        found.left_out += [f"generators and data of process {i}" for i in range(1, len(others) + 1)]
        train = {**train, **first}
    for what, states in (("scheduler", found.schedulers), ("scaler", found.scalers)):
        states |= {name_in(what, key): staging.decode(train[key]) for key in keys_of(what, train)}
    data: Any = {key: staging.decode(train[key]) for key in keys_of("data", train)}
    extra: Any = staging.decode(train["extra"]) if "extra" in train else {}
    found.extra = {**extra, **data}
    rng: Any = staging.decode(train["rng"]) if "rng" in train else None
    found.rng = rng


def _state_dict(saved: SavedOptimizer) -> dict[str, Any]:
    """Return the state dict that torch would, its parameters numbered group by group."""
    flat = [name for group in saved.groups for name in group.params]
    numbers = {name: number for number, name in enumerate(flat)}
    groups = [
        {**group.hyper, "params": [numbers[name] for name in group.params]}
        for group in saved.groups
    ]
    state = {numbers[name]: slots for name, slots in saved.state.items()}
    return {**saved.rest, "state": {**state, **saved.loose}, "param_groups": groups}
