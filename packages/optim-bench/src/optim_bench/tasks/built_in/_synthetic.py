"""Diagnostics on made-up problems: useful for understanding, kept out of every aggregate.

The shifting classification keeps the shape of the stress test that STAM's ancestor shipped (64
features, 4 classes, an MLP 64-128-64-4, a second distribution moved by 0.7 with a perturbed
teacher), but the distributions follow each other in time instead of being mixed in every batch.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from optim_bench.tasks.built_in import _layers
from optim_bench.tasks.built_in._sampled import SampledTask
from optim_bench.tasks.built_in._workload import SPLITS, Array, Workload, generator

FEATURES, CLASSES = 64, 4
SHIFT_STEPS = 250
SIZES = {"train": 2048, "val": 512, "test": 512}
DIMENSIONS, CONDITION, GRADIENT_NOISE = 100, 1e4, 0.01
_DATA_SEED = 20261121


@dataclass(frozen=True)
class ShiftedTask:
    """Two labelled distributions that take turns, `SHIFT_STEPS` steps each.

    Args:
        phases: one task for each distribution; both have the same models and batches.
    """

    phases: tuple[SampledTask, SampledTask]

    def initial(self, seed: int) -> dict[str, Array]:
        """Return the initial parameters of a seed."""
        return self.phases[0].initial(seed)

    def chunks(self, seed: int, sizes: Iterable[int]) -> Iterator[tuple[Array, Array]]:
        """Yield consecutive steps; each step draws from the distribution whose turn it is."""
        streams = [phase.chunks(seed, itertools.repeat(1)) for phase in self.phases]
        step = 0
        for size in sizes:
            steps = [next(streams[self._turn(step + i)]) for i in range(size)]
            inputs, targets = zip(*steps, strict=True)
            yield np.concatenate(inputs), np.concatenate(targets)
            step += size

    def evaluation(self, split: str, seed: int, step: int) -> tuple[Array, Array]:
        """Return a split of the distribution from which step number `step` drew."""
        return self.phases[self._turn(step - 1)].evaluation(split, seed, step)

    def _turn(self, step: int) -> int:
        return step // SHIFT_STEPS % 2


@functools.cache
def _shifted_task(data_dir: Path | None, batch: int) -> ShiftedTask:
    rng = generator(_DATA_SEED, "shifted")
    teacher = rng.standard_normal((FEATURES, CLASSES))
    moved = teacher + 0.75 * rng.standard_normal(teacher.shape)
    phases = []
    for weights, shift in ((teacher, 0.0), (moved, 0.7)):
        splits = {}
        for split in SPLITS:
            x = rng.standard_normal((SIZES[split], FEATURES)) + shift
            splits[split] = (x.astype(np.float32), (x @ weights).argmax(axis=1).astype(np.int32))
        widths = (FEATURES, 128, 64, CLASSES)
        parameters = functools.partial(_layers.mlp, widths=widths)
        phases.append(SampledTask(splits, batch=batch, parameters=parameters))
    return ShiftedTask((phases[0], phases[1]))


def _shifted(name: str, batch: int) -> Workload:
    return Workload(
        name=name,
        version=1,
        title=f"Two distributions that take turns every {SHIFT_STEPS} steps, batches of {batch}",
        kind="synthetic",
        model="mlp",
        loss="cross_entropy",
        metrics=("val_accuracy", "test_accuracy"),
        steps={"smoke": 500, "quick": 1000, "standard": 2000, "full": 6000},
        batch=batch,
        arrays=functools.partial(_shifted_task, batch=batch),
        schedule="constant",
        stream=True,
        evaluate_every=SHIFT_STEPS,
    )


@functools.cache
def curvature() -> Array:
    """Return a symmetric matrix with eigenvalues from 1 down to 1/`CONDITION`, randomly rotated."""
    rng = generator(_DATA_SEED, "curvature")
    rotation, _ = np.linalg.qr(rng.standard_normal((DIMENSIONS, DIMENSIONS)))
    eigenvalues = np.logspace(0, -np.log10(CONDITION), DIMENSIONS)
    return ((rotation * eigenvalues) @ rotation.T).astype(np.float32)


@dataclass(frozen=True)
class FunctionTask:
    """A function of the parameters alone; the inputs are gradient noise, zero when judged.

    Args:
        start: the point around which a seed starts.
        spread: standard deviation of the start over the seeds.
        noise: standard deviation of the linear term that disturbs each step.
    """

    start: tuple[float, ...]
    spread: float
    noise: float

    def initial(self, seed: int) -> dict[str, Array]:
        """Return the starting point of a seed."""
        offset = generator(seed, "init").standard_normal(len(self.start))
        point = np.array(self.start) + self.spread * offset
        return {"point.weight": point.astype(np.float32)}

    def chunks(self, seed: int, sizes: Iterable[int]) -> Iterator[tuple[Array, Array]]:
        """Yield the noise of consecutive steps, (step, 1, dimension), and empty targets."""
        rng = generator(seed, "order")
        for size in sizes:
            shape = (size, 1, len(self.start))
            noise = np.float32(self.noise) * rng.standard_normal(shape, np.float32)
            yield noise, np.zeros((size, 1), np.float32)

    def evaluation(self, split: str, seed: int, step: int) -> tuple[Array, Array]:
        """Return no noise: every split is the function itself."""
        return np.zeros((1, len(self.start)), np.float32), np.zeros(1, np.float32)


def _rosenbrock_task(data_dir: Path | None) -> FunctionTask:
    return FunctionTask((-1.2, 1.0), spread=0.1, noise=0.0)


def _quadratic_task(data_dir: Path | None) -> FunctionTask:
    return FunctionTask((1.0,) * DIMENSIONS, spread=0.5, noise=GRADIENT_NOISE)


SHIFTED_MLP = _shifted("shifted-mlp", 32)
SHIFTED_MLP_B8 = _shifted("shifted-mlp-b8", 8)
SHIFTED_MLP_B4 = _shifted("shifted-mlp-b4", 4)

ROSENBROCK = Workload(
    name="rosenbrock",
    version=1,
    title="Rosenbrock's curved valley in two dimensions, no noise",
    kind="synthetic",
    model="rosenbrock",
    loss="objective",
    metrics=(),
    steps={"smoke": 200, "quick": 1000, "standard": 2000, "full": 10_000},
    batch=1,
    arrays=_rosenbrock_task,
)

ILL_CONDITIONED_QUADRATIC = Workload(
    name="ill-conditioned-quadratic",
    version=1,
    title="A rotated quadratic in 100 dimensions, condition number 10,000, noisy gradients",
    kind="synthetic",
    model="quadratic",
    loss="objective",
    metrics=(),
    steps={"smoke": 200, "quick": 1000, "standard": 2000, "full": 10_000},
    batch=1,
    arrays=_quadratic_task,
)
