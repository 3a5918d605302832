"""Digits for a small MLP: wrong labels in tiny batches, and a task that keeps changing."""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from optim_bench.tasks import data
from optim_bench.tasks.built_in import _digits, _layers
from optim_bench.tasks.built_in._sampled import SampledTask, epoch_order
from optim_bench.tasks.built_in._workload import Array, Target, Workload, generator

NOISE = 0.3
TASK_STEPS = 60
_parameters = functools.partial(_layers.mlp, widths=(64, 128, 128, 10))
# The wrong labels are data, not chance: every seed trains on the same ones.
_NOISE_SEED = 20261121


def corrupt(labels: Array, share: float) -> Array:
    """Return a copy in which exactly `share` of the labels is replaced by one of the nine others.

    Example:
        >>> wrong = corrupt(np.arange(10) % 10, 0.3)
        >>> int((wrong != np.arange(10)).sum())
        3
    """
    rng = generator(_NOISE_SEED, "label noise")
    chosen = rng.permutation(len(labels))[: round(share * len(labels))]
    noisy = labels.copy()
    noisy[chosen] = (labels[chosen] + rng.integers(1, 10, len(chosen))) % 10
    return noisy


@functools.cache
def _noisy_task(data_dir: Path | None) -> SampledTask:
    splits = _digits.splits()
    images, labels = splits["train"]
    splits["train"] = (images, corrupt(labels, NOISE))
    return SampledTask(splits, batch=4, parameters=_parameters)


@dataclass(frozen=True)
class PermutedTask:
    """A stream of tasks: every `TASK_STEPS` steps the pixels change places, the labels stay.

    The permutations come from the seed, so that tuning seeds and fresh seeds see different ones.
    """

    base: SampledTask

    def initial(self, seed: int) -> dict[str, Array]:
        """Return the initial parameters of a seed."""
        return self.base.initial(seed)

    def chunks(self, seed: int, sizes: Iterable[int]) -> Iterator[tuple[Array, Array]]:
        """Yield consecutive steps, each with the permutation of its task."""
        images, labels = self.base.splits["train"]
        flat = images.reshape(len(images), -1)
        order = epoch_order(generator(seed, "order"), len(images), self.base.batch)
        step = 0
        for size in sizes:
            rows = np.stack([next(order) for _ in range(size)])
            pixels = np.stack([permutation(seed, t) for t in range(step, step + size)])
            yield flat[rows[:, :, None], pixels[:, None, :]], labels[rows]
            step += size

    def evaluation(self, split: str, seed: int, step: int) -> tuple[Array, Array]:
        """Return a split under the permutation of the task that step number `step` belonged to."""
        images, labels = self.base.splits[split]
        return images.reshape(len(images), -1)[:, permutation(seed, step - 1)], labels


@functools.lru_cache(maxsize=8)
def _permutation(seed: int, task: int) -> Array:
    return generator(seed, f"permutation {task}").permutation(64)


def permutation(seed: int, step: int) -> Array:
    """Return the pixel permutation in force at a step (counted from 0)."""
    return _permutation(seed, step // TASK_STEPS)


@functools.cache
def _permuted_task(data_dir: Path | None) -> PermutedTask:
    return PermutedTask(SampledTask(_digits.splits(), batch=32, parameters=_parameters))


DIGITS_NOISY = Workload(
    name="digits-noisy",
    version=1,
    title="Handwritten digits with 30 % wrong training labels, batches of 4, a three-layer MLP",
    kind="real",
    model="mlp",
    loss="cross_entropy",
    metrics=("val_accuracy", "test_accuracy"),
    steps={"smoke": 100, "quick": 1500, "standard": 4000, "full": 12_000},
    batch=4,
    arrays=_noisy_task,
    target=Target("val_loss", 0.4545),
    sources=("digits",),
    licence=data.SOURCES["digits"].licence,
)

PERMUTED_DIGITS = Workload(
    name="permuted-digits",
    version=1,
    title=f"Handwritten digits whose pixels change places every {TASK_STEPS} steps, an MLP",
    kind="real",
    model="mlp",
    loss="cross_entropy",
    metrics=("val_accuracy", "test_accuracy", "plasticity_slope"),
    steps={"smoke": 120, "quick": 1200, "standard": 3000, "full": 12_000},
    batch=32,
    arrays=_permuted_task,
    target=Target("val_loss", 0.3406),
    sources=("digits",),
    licence=data.SOURCES["digits"].licence,
    schedule="constant",
    stream=True,
    evaluate_every=TASK_STEPS,
)
