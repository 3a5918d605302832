"""Handwritten digits, 1,797 images of 8x8 pixels: a small convolutional network."""

import functools
from pathlib import Path

import numpy as np

from optim_bench.tasks import data
from optim_bench.tasks.built_in import _layers
from optim_bench.tasks.built_in._sampled import SampledTask
from optim_bench.tasks.built_in._workload import Array, Target, Workload

TRAIN, VAL = 1200, 297  # the remaining 300 are the test split


def splits() -> dict[str, tuple[Array, Array]]:
    """Return the three splits: images in [0, 1] as (n, 8, 8) float32, labels as int32."""
    arrays = data.load("digits")
    order = arrays["order"]
    images = arrays["images"][order].astype(np.float32) / np.float32(16)
    labels = arrays["labels"][order].astype(np.int32)
    bounds = {"train": (0, TRAIN), "val": (TRAIN, TRAIN + VAL), "test": (TRAIN + VAL, len(labels))}
    return {name: (images[a:b], labels[a:b]) for name, (a, b) in bounds.items()}


def cnn_parameters(rng: np.random.Generator) -> dict[str, Array]:
    """Draw the parameters of conv 16, conv 32 with stride 2, dense 64, dense 10."""
    return {
        **_layers.convolution(rng, "conv1", 1, 16, 3),
        **_layers.convolution(rng, "conv2", 16, 32, 3),
        **_layers.dense(rng, "fc1", 32 * 4 * 4, 64),
        **_layers.dense(rng, "fc2", 64, 10, gain=1.0),
    }


@functools.cache
def _cnn_task(data_dir: Path | None) -> SampledTask:
    return SampledTask(splits(), batch=64, parameters=cnn_parameters)


DIGITS_CNN = Workload(
    name="digits-cnn",
    version=1,
    title="Handwritten digits, two convolutions and two dense layers",
    kind="real",
    model="cnn",
    loss="cross_entropy",
    metrics=("val_accuracy", "test_accuracy"),
    steps={"smoke": 40, "quick": 400, "standard": 1500, "full": 3000},
    batch=64,
    arrays=_cnn_task,
    target=Target("val_loss", 0.07304),
    sources=("digits",),
    licence=data.SOURCES["digits"].licence,
    unrolled=False,
)
