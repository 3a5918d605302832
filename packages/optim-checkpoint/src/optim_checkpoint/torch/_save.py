"""Saving a torch training run."""

from collections.abc import Mapping
from typing import Any, TypedDict

import torch

from optim_checkpoint._collect import Collector
from optim_checkpoint._commit import Document
from optim_checkpoint._data import Data, Stateful, stateful_data
from optim_checkpoint._errors import UnsupportedStateError
from optim_checkpoint._files import MAX_SHARD_SIZE, check_max_shard_size
from optim_checkpoint._folder import StrPath, check_step
from optim_checkpoint._options import Options
from optim_checkpoint._place import Place, commit
from optim_checkpoint._policy import METRICS, Best, Metrics, encode_metrics
from optim_checkpoint._together import save_together
from optim_checkpoint._typed import Typed, encode, encode_exact
from optim_checkpoint.torch import _rng
from optim_checkpoint.torch._layout import overlaps
from optim_checkpoint.torch._memory import check_surroundings
from optim_checkpoint.torch._named import ALONE, by_name, key, keys_of, one_model
from optim_checkpoint.torch._names import model_state, unwrap
from optim_checkpoint.torch._optimizer import encode_optimizer
from optim_checkpoint.torch._own_load import own_memory
from optim_checkpoint.torch._processes import is_sharded, writers
from optim_checkpoint.torch._tensors import add_tensor, is_lazy, tensor_leaf

Models = torch.nn.Module | Mapping[str, torch.nn.Module] | None
Optimizers = torch.optim.Optimizer | Mapping[str, torch.optim.Optimizer] | None
Statefuls = Stateful | Mapping[str, Stateful] | None


class TrainingState(TypedDict, total=False):
    """What is saved of a training run; `save` says what each is."""

    model: Models
    optimizer: Optimizers
    scheduler: Statefuls
    scaler: Statefuls
    data: Data
    extra: Mapping[str, Any] | None
    rng: bool
    metrics: Metrics | None


def statefuls_of(scheduler: Statefuls, scaler: Statefuls, data: Data) -> dict[str, Stateful]:
    """Return schedulers, scalers and data loaders under the keys of a checkpoint.

    Raises:
        TypeError: As `by_name`.
    """
    return {
        key(what, name): stateful
        for what, given in (
            ("scheduler", scheduler),
            ("scaler", scaler),
            ("data", stateful_data(data)),
        )
        for name, stateful in by_name(what, given).items()
    }


def build_document(
    step: int,
    *,
    model: Models = None,
    optimizer: Optimizers = None,
    scheduler: Statefuls = None,
    scaler: Statefuls = None,
    data: Data = None,
    extra: Mapping[str, Any] | None = None,
    rng: bool = True,
    metrics: Metrics | None = None,
    rank: int | None = None,
) -> Document:
    """Describe a training run; the tensors are read when the document is written.

    With a `rank`, the generators are those of one of several processes and stay apart.
    """
    number = check_step(step)
    check_surroundings("save")
    if all(each is None for each in (model, optimizer, scheduler, scaler, data, extra)):
        raise ValueError(
            f"step {number} has nothing to save: give model, optimizer, scheduler, scaler, data or "
            "extra"
        )
    parts = {part: Collector() for part in ("model", "optim", "train")}
    sections: dict[str, object] = {}
    whole = one_model(model)
    if whole is not None:
        sections["model"] = _encode_model(whole, parts["model"])
    for name, one in by_name("optimizer", optimizer).items():
        prefix = "" if name == ALONE else f"{name}."
        section = encode_optimizer(one, whole, parts["optim"], prefix)
        sections[key("optimizer", name)] = section
    train: dict[str, object] = {}
    collector = parts["train"]
    own: dict[str, object] | None = None if rank is None else {}
    own_keys: set[str] = set()
    for name, value in statefuls_of(scheduler, scaler, data).items():
        # Each process reads its own data.
        mine = own is not None and bool(keys_of("data", [name]))
        leaf = tensor_leaf(collector, f"rank{rank}." if mine else "")
        section = own if mine and own is not None else train
        before = len(collector.entries)
        section[name] = encode(value.state_dict(), name, leaf)
        own_keys |= {entry.name for entry in collector.entries[before:] if mine}
    if extra is not None:
        leaf = tensor_leaf(collector, "", exact=True)
        value = extra if isinstance(extra, dict) else dict(extra)
        train["extra"] = encode_exact(value, "extra", leaf, collector.features)
        collector.check_views()
    if rng and own is not None:
        before = len(collector.entries)
        own["rng"] = encode(_rng.capture(), "rng", tensor_leaf(collector, f"rank{rank}."))
        own_keys |= {entry.name for entry in collector.entries[before:]}
    elif rng:
        train["rng"] = encode(_rng.capture(), "rng", tensor_leaf(collector, ""))
    sections["train"] = train
    if metrics is not None:
        sections[METRICS] = encode_metrics(metrics)
    return Document(
        number,
        {"name": "torch", "versions": {"torch": str(torch.__version__)}},
        sections,
        {part: collector.entries for part, collector in parts.items()},
        own,
        {part: collector.shards for part, collector in parts.items()},
        set[str]().union(*(collector.features for collector in parts.values())),
        own_keys,
    )


def _encode_model(model: torch.nn.Module, collector: Collector) -> list[object]:
    entries: list[object] = []
    live = model_state(model)
    for name, tensor in own_memory(unwrap(model)).items():
        if name in live and not is_lazy(tensor) and overlaps(tensor):
            raise UnsupportedStateError(
                f"model {name}",
                "has elements that share memory, as expand() makes them, so that nothing can be "
                "copied into it: register it with .contiguous(), or with persistent=False",
            )
    for name, value in live.items():
        if isinstance(value, torch.Tensor):
            stored = add_tensor(collector, name, value, f"model {name}", subclasses=True)
            typed: Typed = {"tensor": stored}
        else:
            typed = encode(value, f"model {name}", tensor_leaf(collector, "extra_state."))
        entries.append([name, typed])
    return entries


def save(
    path: StrPath,
    step: int,
    *,
    model: Models = None,
    optimizer: Optimizers = None,
    scheduler: Statefuls = None,
    scaler: Statefuls = None,
    data: Data = None,
    extra: Mapping[str, Any] | None = None,
    rng: bool = True,
    metrics: Metrics | None = None,
    keep: int | None = None,
    keep_every: int | None = None,
    keep_best: Best | None = None,
    replace: bool = False,
    max_shard_size: int = MAX_SHARD_SIZE,
    incremental: bool = False,
    process_group: Any = None,
) -> Place:
    """Save a training run; when this returns, it survives a kill and a power cut.

    Where the model or the optimizer has DTensors, as FSDP2 and tensor parallelism make them, every
    process makes this call: each writes its own shards, replicated tensors are written once, and
    one process commits when all of it is durable. All return then, or all raise. Each process's
    generators are stored; everything else that is not sharded must be equal in all of them.

    Args:
        path: The folder of the run, created where missing, or a URL of fsspec, such as
            ``s3://bucket/run``.
        step: The training step, from 0 to 10**18; one generation per step.
        model: Its whole state dict is stored, tied tensors once. Several are given by name, as in
            ``{"generator": g, "critic": d}``; so are several optimizers, schedulers and scalers.
        optimizer: Any optimizer; its state is stored by parameter name in its own dtypes.
        scheduler: A learning-rate scheduler, or anything else with a state dict.
        scaler: A `torch.amp.GradScaler`.
        data: A data loader, sampler or iterator with ``state_dict`` and ``load_state_dict``, as
            torchdata's `StatefulDataLoader`, or with ``get_state`` and ``set_state``. Of processes
            that save together each keeps its own.
        extra: Numbers, text, lists, tuples, dicts, tensors and arrays under string keys; tensors
            come back on the CPU, and the README lists what else comes back how.
        rng: Whether to store the global generators of torch, NumPy and Python.
        metrics: Numbers by name, for `keep_best`.
        keep: How many generations to keep, this one included; None keeps all.
        keep_every: Keep those of which the step is a multiple of it, too.
        keep_best: Keep the best ones by a metric, too: its name, "min" or "max", and how many, as
            in ``("val_loss", "min", 3)``.
        replace: Whether a step that exists gets a newer generation instead of an error.
        max_shard_size: Greatest number of bytes of tensors in one file; a larger tensor gets a file
            of its own.
        incremental: Whether files of which no tensor has changed are shared with an earlier step
            instead of written: for frozen parameters. The state then goes to some 130 files, and
            damage to a shared one is damage to every step that has it. Not for several processes.
        process_group: The processes that save together; None is the default group where something
            is sharded, and this process alone where nothing is. With a group given, processes that
            hold replicas save together too, which keeps each one's generators.

    Returns:
        The path of the committed generation.

    Raises:
        UnsupportedStateError: For a value that cannot be stored exactly, with its path; also where
            processes differ in something that is not sharded.
        CheckpointExistsError: If the step exists undamaged and `replace` is false.
        CheckpointWriteError: If it cannot be written, or another process failed or is gone; earlier
            steps are untouched.
        TypeError: If an argument is neither of its kind nor a mapping of names to such.
        ValueError: If there is nothing to save, or an argument is out of its range.
    """
    sharded = is_sharded(one_model(model), by_name("optimizer", optimizer), extra)
    team = writers(process_group, step, sharded=sharded)

    def build() -> Document:
        check_max_shard_size(max_shard_size)
        return build_document(
            step,
            model=model,
            optimizer=optimizer,
            scheduler=scheduler,
            scaler=scaler,
            data=data,
            extra=extra,
            rng=rng,
            metrics=metrics,
            rank=None if team is None else team.rank,
        )

    options = Options(keep, keep_every, keep_best, replace, max_shard_size, incremental)
    if team is None:
        return commit(path, build(), options)
    return save_together(path, build, team, options)
