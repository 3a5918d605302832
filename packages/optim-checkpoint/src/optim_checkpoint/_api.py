# pyright: strict
"""What can be asked of a folder of checkpoints without any framework."""

import contextlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar, cast

from optim_checkpoint import _place, _reading
from optim_checkpoint._errors import CheckpointError, CorruptCheckpointError
from optim_checkpoint._folder import GenerationName, StrPath, check_step, parse_name
from optim_checkpoint._generation import Generation
from optim_checkpoint._json import as_object
from optim_checkpoint._place import Place
from optim_checkpoint._select import candidates

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """A generation of which every bit matched its digest."""

    path: Place
    step: int
    files: int
    tensors: int
    nbytes: int
    checkpoint_id: str


@dataclass(frozen=True, slots=True)
class TensorSummary:
    """One stored tensor."""

    part: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a generation holds, from its manifest and headers alone."""

    path: Place
    step: int
    checkpoint_id: str
    framework: dict[str, object]
    optimizer: str | None
    sections: tuple[str, ...]
    tensors: tuple[TensorSummary, ...]
    nbytes: int


def steps(path: StrPath) -> list[int]:
    """List the committed steps of a folder, ascending.

    A folder that does not exist has none. Only names are read: a listed step was committed, whether
    it is still sound is for `verify` to say.

    Raises:
        CheckpointNotFoundError: If `path` is one generation of a run.
        CheckpointReadError: If the folder is there and cannot be listed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     steps(folder)
        []
    """
    return _reading.afresh(
        lambda: sorted({name.step for name in _place.present(path, must_exist=False)})
    )


def latest_step(path: StrPath) -> int | None:
    """Return the newest step whose manifest, sizes and headers are sound, or None.

    The data is not read: `restore` may still fall back to an earlier step.

    Raises:
        CheckpointReadError: If the newest step cannot be read: it may be sound.
        CheckpointError: If a newer release of this package wrote the newest step, or `path` is one
            generation of a run.
    """

    def newest() -> int | None:
        for name in reversed(_place.present(path, must_exist=False)):
            try:
                with _place.opened(path, name, data=False):
                    return name.step
            except CorruptCheckpointError:
                continue
        return None

    return _reading.afresh(newest)


@dataclass(frozen=True, slots=True)
class Retained:
    """Why a generation is there.

    Attributes:
        path: The generation.
        step: Its step.
        reasons: Why the next save keeps it, were it of this run; empty where it may go.
        metrics: What was saved as its metrics.
    """

    path: Place
    step: int
    reasons: tuple[str, ...]
    metrics: Mapping[str, float]


def retained(path: StrPath) -> list[Retained]:
    """Say why each generation stays, by what the last save was told to keep.

    Manifests, sizes and headers are read, no data.

    Raises:
        CheckpointReadError: If the folder is there and cannot be listed.
        CheckpointNotFoundError: If `path` is one generation of a run.
    """
    return [
        Retained(_place.inside(path, name), name.step, tuple(reasons), notes.metrics)
        for name, reasons, notes in _place.kept(path)
    ]


def verify(path: StrPath, step: int | None = None) -> VerifyReport:
    """Read every byte of a generation and compare it with its digests.

    Args:
        path: The folder of the run.
        step: The step; None is the newest. There is no falling back here.

    Returns:
        What was verified.

    Raises:
        CheckpointNotFoundError: If there is no such step.
        CorruptCheckpointError: At the first difference, with the file and the tensor, and with the
            other steps that share the file after incremental saves.
        CheckpointReadError: If something cannot be read; it may be sound.
    """
    try:
        return _on_one(path, step, _verify)
    except CorruptCheckpointError as error:
        name = parse_name(error.file.partition("/")[0])
        if name is None:
            raise
        _place.note_damage(path, name, error.file)
        others = _sharing(path, name, error.file)
        if not others:
            raise
        listed = ", ".join(map(str, others))
        raise CorruptCheckpointError(
            error.file,
            f"{error.detail}; it is also a file of the steps {listed}",
            tensor=error.tensor,
        ) from None


def _sharing(path: StrPath, name: GenerationName, file: str) -> list[int]:
    """Return the other steps that have a file of a generation."""
    with contextlib.suppress(CheckpointError, OSError):
        every = _place.files(path)
        mine = every.pop(name, {}).get(file.removeprefix(f"{name}/"))
        return [other.step for other, found in every.items() if mine in found.values()]
    return []


def shared_bytes(path: StrPath) -> dict[int, int]:
    """Return how many bytes of each step are in files that another step has, too."""
    every = _place.files(path)
    count = Counter(item for found in every.values() for item in set(found.values()))
    shared: Counter[int] = Counter()
    for name, found in every.items():
        shared[name.step] += sum(item[1] for item in found.values() if count[item] > 1)
    return dict(shared)


def _on_one(
    path: StrPath, step: int | None, use: Callable[[Generation, Place], T], *, data: bool = True
) -> T:
    wanted = None if step is None else check_step(step)

    def attempt() -> T:
        name = candidates(path, wanted)[0]
        with _place.opened(path, name, data=data) as generation:
            return use(generation, _place.inside(path, name))

    return _reading.afresh(attempt)


def _verify(generation: Generation, path: Place) -> VerifyReport:
    nbytes = generation.read(lambda part, key, info: None)
    return VerifyReport(
        path,
        generation.name.step,
        len(generation.files),
        len(generation.keys()),
        nbytes,
        generation.manifest.checkpoint_id,
    )


def inspect(path: StrPath, step: int | None = None) -> Inspection:
    """Describe a generation without reading its data.

    Args:
        path: The folder of the run.
        step: The step; None is the newest.

    Returns:
        Its sections and tensors.

    Raises:
        CheckpointNotFoundError: If there is no such step.
        CorruptCheckpointError: If its manifest, a size or a header is damaged.
        CheckpointReadError: If something cannot be read; it may be sound.
    """
    return _on_one(path, step, _describe, data=False)


def _describe(generation: Generation, path: Place) -> Inspection:
    manifest = generation.manifest
    tensors = tuple(
        TensorSummary(part, key, info.dtype, info.shape, info.nbytes)
        for (part, key), info in sorted(generation.keys().items())
    )
    optimizers = sorted(key for key in manifest.sections if key.partition("/")[0] == "optimizer")
    kinds: list[str] = []
    for key in optimizers:
        kind = (as_object(manifest.sections[key]) or {}).get("kind")
        if isinstance(kind, str):
            kinds.append(f"{key.partition('/')[2]}: {kind}" if "/" in key else kind)
    train = manifest.sections.get("train")
    names = [key for key in ("model", *optimizers) if key in manifest.sections]
    if isinstance(train, dict):
        names += sorted(cast("dict[str, object]", train))
    return Inspection(
        path,
        manifest.step,
        manifest.checkpoint_id,
        dict(manifest.framework),
        ", ".join(kinds) or None,
        tuple(names),
        tensors,
        sum(stored.record.size for stored in generation.files),
    )
