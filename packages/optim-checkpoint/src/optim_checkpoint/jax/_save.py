"""Saving a JAX training run."""

from collections.abc import Mapping
from typing import Any, TypedDict

import jax

from optim_checkpoint._collect import Collector
from optim_checkpoint._commit import Document
from optim_checkpoint._data import Data, data_by_key
from optim_checkpoint._files import MAX_SHARD_SIZE, check_max_shard_size
from optim_checkpoint._folder import StrPath, check_step
from optim_checkpoint._options import Options
from optim_checkpoint._place import Place, commit
from optim_checkpoint._policy import METRICS, Best, Metrics, encode_metrics
from optim_checkpoint._together import save_together
from optim_checkpoint._typed import encode_exact
from optim_checkpoint.jax._leaves import array_leaf
from optim_checkpoint.jax._processes import writers
from optim_checkpoint.jax._sections import encode_params, encode_state


class TrainingState(TypedDict, total=False):
    """What is saved of a training run; `save` says what each is."""

    params: Any
    opt_state: Any
    rng: Any
    extra: Mapping[str, Any] | None
    data: Data
    metrics: Metrics | None


def build_document(
    step: int,
    *,
    params: Any = None,
    opt_state: Any = None,
    rng: Any = None,
    extra: Mapping[str, Any] | None = None,
    data: Data = None,
    metrics: Metrics | None = None,
) -> Document:
    """Describe a training run; the arrays are read when the document is written."""
    number = check_step(step)
    if all(each is None for each in (params, opt_state, rng, extra, data)):
        raise ValueError(
            f"step {number} has nothing to save: give params, opt_state, rng, extra or data"
        )
    parts = {part: Collector() for part in ("model", "optim", "train")}
    sections: dict[str, object] = {}
    if params is not None:
        sections["model"] = encode_params(params, parts["model"])
    if opt_state is not None:
        sections["optimizer"] = encode_state(opt_state, params, parts["optim"])
    train: dict[str, object] = {}
    features = parts["train"].features
    loose = extra if extra is None or isinstance(extra, dict) else dict(extra)
    states = {name: loader.state_dict() for name, loader in data_by_key(data).items()}
    for name, value in {"rng": rng, "extra": loose, **states}.items():
        if value is not None:
            train[name] = encode_exact(value, name, array_leaf(parts["train"], ""), features)
    parts["train"].check_views()
    sections["train"] = train
    if metrics is not None:
        sections[METRICS] = encode_metrics(metrics)
    return Document(
        number,
        {"name": "jax", "versions": {"jax": jax.__version__}},
        sections,
        {part: collector.entries for part, collector in parts.items()},
        shards={part: collector.shards for part, collector in parts.items()},
        features=set[str]().union(*(collector.features for collector in parts.values())),
    )


def save(
    path: StrPath,
    step: int,
    *,
    params: Any = None,
    opt_state: Any = None,
    rng: Any = None,
    extra: Mapping[str, Any] | None = None,
    data: Data = None,
    metrics: Metrics | None = None,
    keep: int | None = None,
    keep_every: int | None = None,
    keep_best: Best | None = None,
    replace: bool = False,
    max_shard_size: int = MAX_SHARD_SIZE,
    incremental: bool = False,
) -> Place:
    """Save a training run; when this returns, it survives a kill and a power cut.

    Where an array is spread over several processes, every process makes this call: each writes its
    own shards, replicated arrays are written once, and one process commits when all of it is
    durable. All return then, or all raise. What is not sharded must be equal in all of them.

    Args:
        path: The folder of the run, created where missing, or a URL of fsspec, such as
            ``s3://bucket/run``.
        step: The training step, from 0 to 10**18; one generation per step.
        params: Any pytree of arrays.
        opt_state: Any optax state, or any pytree of arrays and numbers. With `params` given, its
            leaves are stored under the names of their parameters.
        rng: A typed PRNG key, or lists, tuples and dicts of keys.
        extra: Numbers, text, lists, tuples, dicts and arrays under string keys; the README lists
            what comes back how.
        data: An iterator or a loader with ``get_state`` and ``set_state``, as those of Grain, or
            with ``state_dict`` and ``load_state_dict``; several by name.
        metrics: Numbers by name, for `keep_best`.
        keep: How many generations to keep, this one included; None keeps all.
        keep_every: Keep those of which the step is a multiple of it, too.
        keep_best: Keep the best ones by a metric, too: its name, "min" or "max", and how many, as
            in ``("val_loss", "min", 3)``.
        replace: Whether a step that exists gets a newer generation instead of an error.
        max_shard_size: Greatest number of bytes of arrays in one file; a larger array gets a file
            of its own.
        incremental: Whether files of which no array has changed are shared with an earlier step
            instead of written: for frozen parameters. The state then goes to some 130 files, and
            damage to a shared one is damage to every step that has it. Not for several processes.

    Returns:
        The path of the committed generation.

    Raises:
        UnsupportedStateError: For a leaf that cannot be stored exactly, with its path; also where
            processes differ in something that is not sharded.
        CheckpointExistsError: If the step exists undamaged and `replace` is false.
        CheckpointWriteError: If it cannot be written, or another process failed or is gone; earlier
            steps are untouched.
        ValueError: If there is nothing to save, or an argument is out of its range.
    """

    def build() -> Document:
        check_max_shard_size(max_shard_size)
        return build_document(
            step,
            params=params,
            opt_state=opt_state,
            rng=rng,
            extra=extra,
            data=data,
            metrics=metrics,
        )

    options = Options(keep, keep_every, keep_best, replace, max_shard_size, incremental)
    team = writers(step, params, opt_state, rng, extra)
    if team is None:
        return commit(path, build(), options)
    return save_together(path, build, team, options)
