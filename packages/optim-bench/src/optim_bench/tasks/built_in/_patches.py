"""Denoise 16x16 patches of two photographs with a small autoencoder."""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from optim_bench.tasks import data
from optim_bench.tasks.built_in import _layers
from optim_bench.tasks.built_in._workload import Array, Workload, generator

SIDE = 16
SIGMA = 0.15
# Splits share no pixel: each takes its own columns of both photographs.
COLUMNS = {"train": (0, 320), "val": (320, 480), "test": (480, 640)}
_NOISE_SEED = 20261121


@dataclass(frozen=True)
class PatchTask:
    """Patches at random places with fresh noise; the target is the clean patch, in [-0.5, 0.5].

    Args:
        regions: the photographs' parts of each split, float32 in [-0.5, 0.5].
        batch: patches per step.
    """

    regions: dict[str, tuple[Array, ...]]
    batch: int

    def initial(self, seed: int) -> dict[str, Array]:
        """Return the initial parameters of a seed."""
        pixels = SIDE * SIDE
        return _layers.mlp(generator(seed, "init"), widths=(pixels, 256, 64, 256, pixels))

    def chunks(self, seed: int, sizes: Iterable[int]) -> Iterator[tuple[Array, Array]]:
        """Yield consecutive steps as `(noisy, clean)`, each (step, patch, 256)."""
        rng = generator(seed, "order")
        windows = [sliding_window_view(image, (SIDE, SIDE)) for image in self.regions["train"]]
        stacked = np.stack(windows)
        photos, rows, columns = stacked.shape[:3]
        for size in sizes:
            noisy, clean = [], []
            for _ in range(size):
                which = rng.integers(0, (photos, rows, columns), (self.batch, 3)).T
                patches = stacked[tuple(which)].reshape(self.batch, -1)
                noise = rng.standard_normal(patches.shape, np.float32)
                noisy.append(patches + np.float32(SIGMA) * noise)
                clean.append(patches)
            yield np.stack(noisy), np.stack(clean)

    def evaluation(self, split: str, seed: int, step: int) -> tuple[Array, Array]:
        """Return the patches of a fixed grid, with fixed noise."""
        return self._grids[split]

    @functools.cached_property
    def _grids(self) -> dict[str, tuple[Array, Array]]:
        grids = {}
        for split, images in self.regions.items():
            clean = np.concatenate(
                [
                    sliding_window_view(image, (SIDE, SIDE))[::SIDE, ::SIDE].reshape(-1, SIDE**2)
                    for image in images
                ]
            )
            noise = generator(_NOISE_SEED, split).standard_normal(clean.shape, np.float32)
            grids[split] = (clean + np.float32(SIGMA) * noise, clean)
            for array in grids[split]:
                array.flags.writeable = False
        return grids


@functools.cache
def _task(data_dir: Path | None) -> PatchTask:
    photos = [
        photo.astype(np.float32) / np.float32(255) - np.float32(0.5)
        for photo in data.load("photos").values()
    ]
    regions = {
        split: tuple(photo[:, left:right] for photo in photos)
        for split, (left, right) in COLUMNS.items()
    }
    return PatchTask(regions, batch=128)


PATCHES_DENOISE = Workload(
    name="patches-denoise",
    version=1,
    title="Denoise 16x16 patches of two photographs, a four-layer autoencoder",
    kind="real",
    model="mlp",
    loss="squared_error",
    metrics=(),
    steps={"smoke": 40, "quick": 500, "standard": 2000, "full": 10_000},
    batch=128,
    arrays=_task,
    sources=("photos",),
    licence=data.SOURCES["photos"].licence,
)
