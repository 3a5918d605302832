# pyright: strict
"""What can be asked of a folder of checkpoints without any framework."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

from optim_checkpoint import _fs, _reading
from optim_checkpoint._errors import CorruptCheckpointError
from optim_checkpoint._folder import StrPath, check_step, find_root, generations, open_root
from optim_checkpoint._generation import Generation
from optim_checkpoint._json import as_object
from optim_checkpoint._proof import examine
from optim_checkpoint._retention import reasons
from optim_checkpoint._select import candidates

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """A generation of which every bit matched its digest."""

    path: Path
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

    path: Path
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
    """

    def listed() -> list[int]:
        root = find_root(path)
        if root is None:
            return []
        with _fs.opened(root):
            return sorted({name.step for name in generations(root, path)})

    return _reading.afresh(listed)


def latest_step(path: StrPath) -> int | None:
    """Return the newest step whose manifest, sizes and headers are sound, or None.

    The data is not read: `restore` may still fall back to an earlier step.

    Raises:
        CheckpointReadError: If the newest step cannot be read: it may be sound.
        CheckpointError: If a newer release of this package wrote the newest step, or `path` is one
            generation of a run.
    """

    def newest() -> int | None:
        root = find_root(path)
        if root is None:
            return None
        with _fs.opened(root):
            for name in reversed(generations(root, path)):
                try:
                    with Generation(root, name):
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

    path: Path
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

    def listed() -> list[Retained]:
        root = find_root(path)
        if root is None:
            return []
        with _fs.opened(root):
            present = generations(root, path)
            notes = {name: examine(root, name)[1] for name in present}
            left = {name for each in notes.values() for name in each.abandoned}
            last = max((name for name in present if name not in left), default=None)
            if last is None:
                return []
            policy = notes[last].policy
            stays = reasons(root, present, last, policy)
            if policy.keep is None:
                for name in present:
                    stays.setdefault(name, []).append("the last save was told to keep all")
        return [
            Retained(
                Path(path) / str(name),
                name.step,
                tuple(stays.get(name, ())),
                notes[name].metrics,
            )
            for name in present
        ]

    return _reading.afresh(listed)


def verify(path: StrPath, step: int | None = None) -> VerifyReport:
    """Read every byte of a generation and compare it with its digests.

    Args:
        path: The folder of the run.
        step: The step; None is the newest. There is no falling back here.

    Returns:
        What was verified.

    Raises:
        CheckpointNotFoundError: If there is no such step.
        CorruptCheckpointError: At the first difference, with the file and the tensor.
        CheckpointReadError: If something cannot be read; it may be sound.
    """
    return _on_one(path, step, _verify)


def _on_one(path: StrPath, step: int | None, use: Callable[[Generation, Path], T]) -> T:
    wanted = None if step is None else check_step(step)

    def attempt() -> T:
        with _fs.opened(open_root(path)) as root:
            name = candidates(root, path, wanted)[0]
            with Generation(root, name) as generation:
                return use(generation, Path(path) / str(name))

    return _reading.afresh(attempt)


def _verify(generation: Generation, path: Path) -> VerifyReport:
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
    return _on_one(path, step, _describe)


def _describe(generation: Generation, path: Path) -> Inspection:
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
