"""Diamonds: predict the logarithm of a price from 26 features, a three-layer MLP."""

import functools
from pathlib import Path

import numpy as np

from optim_bench.tasks import data
from optim_bench.tasks.built_in import _layers
from optim_bench.tasks.built_in._sampled import SampledTask
from optim_bench.tasks.built_in._workload import Array, Target, Workload

TRAIN, VAL = 40_000, 7_000  # the remaining 6,775 are the test split
NUMBERS = ("carat", "depth", "table", "x", "y", "z")
LEVELS = {"cut": 5, "color": 7, "clarity": 8}


def splits() -> dict[str, tuple[Array, Array]]:
    """Return the three splits: features (n, 26) and the centred log price (n, 1), float32.

    Numbers are standardised with the training split's mean and deviation and clipped to [-5, 5] (a
    handful of stones have sizes mistyped by a factor of ten); categories are one-hot.
    """
    arrays = data.load("diamonds")
    order = arrays["order"]
    numbers = np.stack([arrays[name][order] for name in NUMBERS], axis=1).astype(np.float64)
    mean, deviation = numbers[:TRAIN].mean(axis=0), numbers[:TRAIN].std(axis=0)
    columns = [np.clip((numbers - mean) / deviation, -5, 5)]
    columns += [np.eye(levels)[arrays[name][order]] for name, levels in LEVELS.items()]
    features = np.concatenate(columns, axis=1).astype(np.float32)
    price = np.log(arrays["price"][order].astype(np.float64))
    target = (price - price[:TRAIN].mean()).astype(np.float32)[:, None]
    bounds = {"train": (0, TRAIN), "val": (TRAIN, TRAIN + VAL), "test": (TRAIN + VAL, len(target))}
    return {name: (features[a:b], target[a:b]) for name, (a, b) in bounds.items()}


@functools.cache
def _task(data_dir: Path | None) -> SampledTask:
    return SampledTask(
        splits(), batch=256, parameters=functools.partial(_layers.mlp, widths=(26, 128, 128, 1))
    )


DIAMONDS_MLP = Workload(
    name="diamonds-mlp",
    version=1,
    title="Log price of diamonds from 26 features, a three-layer MLP",
    kind="real",
    model="mlp",
    loss="squared_error",
    metrics=(),
    steps={"smoke": 60, "quick": 600, "standard": 3000, "full": 10_000},
    batch=256,
    arrays=_task,
    target=Target("val_loss", 0.00957),
    sources=("diamonds",),
    licence=data.SOURCES["diamonds"].licence,
)
