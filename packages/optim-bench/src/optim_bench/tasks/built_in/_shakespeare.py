"""Predict the next character of Shakespeare's plays with a small pre-norm transformer."""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from optim_bench.tasks import data
from optim_bench.tasks.built_in import _layers
from optim_bench.tasks.built_in._workload import SPLITS, Array, Workload, generator

CONTEXT = 64
WIDTH = 64
LAYERS = 2
WINDOWS = 128
# What no parameter's shape says about the transformer.
HEADS = 4
NORM_EPS = 1e-5


def transformer_parameters(
    rng: np.random.Generator, symbols: int, context: int
) -> dict[str, Array]:
    """Draw a transformer: token and position embeddings, `LAYERS` pre-norm blocks, a separate head.

    No layer has a bias; the matrices that write into the residual stream are scaled by 1/sqrt(2 L).
    """

    def matrix(name: str, outputs: int, inputs: int, scale: float = 1.0) -> dict[str, Array]:
        drawn = _layers.dense(rng, name, inputs, outputs, gain=scale**2)
        return {f"{name}.weight": drawn[f"{name}.weight"]}

    def embedding(name: str, rows: int) -> dict[str, Array]:
        values = 0.02 * rng.standard_normal((rows, WIDTH))
        return {f"{name}.weight": values.astype(np.float32)}

    ones = np.ones(WIDTH, np.float32)
    residual = 1 / np.sqrt(2 * LAYERS)
    params = {**embedding("token", symbols), **embedding("position", context)}
    for i in range(LAYERS):
        block = f"blocks.{i}"
        params |= {f"{block}.norm1.weight": ones}
        params |= matrix(f"{block}.qkv", 3 * WIDTH, WIDTH)
        params |= matrix(f"{block}.out", WIDTH, WIDTH, residual)
        params |= {f"{block}.norm2.weight": ones}
        params |= matrix(f"{block}.up", 4 * WIDTH, WIDTH)
        params |= matrix(f"{block}.down", WIDTH, 4 * WIDTH, residual)
    return {**params, "norm.weight": ones, **matrix("head", symbols, WIDTH, 0.5)}


@dataclass(frozen=True)
class TextTask:
    """Windows of a long sequence of token numbers; the target is the sequence one place later.

    Args:
        tokens: the sequence of each split, any integer dtype.
        symbols: size of the vocabulary.
        batch: windows per step.
        context: characters per window.
    """

    tokens: dict[str, Array]
    symbols: int
    batch: int
    context: int = CONTEXT

    def initial(self, seed: int) -> dict[str, Array]:
        """Return the initial parameters of a seed."""
        return transformer_parameters(generator(seed, "init"), self.symbols, self.context)

    def chunks(self, seed: int, sizes: Iterable[int]) -> Iterator[tuple[Array, Array]]:
        """Yield consecutive steps as `(inputs, targets)`, each (step, window, character)."""
        rng = generator(seed, "order")
        starts = len(self.tokens["train"]) - self.context
        for size in sizes:
            chosen = np.stack([rng.integers(0, starts, self.batch) for _ in range(size)])
            yield self._windows("train", chosen)

    def evaluation(self, split: str, seed: int, step: int) -> tuple[Array, Array]:
        """Return `WINDOWS` evenly spaced windows."""
        last = len(self.tokens[split]) - self.context - 1
        return self._windows(split, np.linspace(0, last, WINDOWS).astype(np.int64))

    def _windows(self, split: str, starts: Array) -> tuple[Array, Array]:
        places = starts[..., None] + np.arange(self.context + 1)
        windows = self.tokens[split][places].astype(np.int32)
        return windows[..., :-1], windows[..., 1:]


@functools.cache
def _task(data_dir: Path | None) -> TextTask:
    texts = data.load("shakespeare")
    symbols, codes = np.unique(
        np.concatenate([texts[split] for split in SPLITS]), return_inverse=True
    )
    ends = np.cumsum([len(texts[split]) for split in SPLITS])[:-1]
    return TextTask(
        dict(zip(SPLITS, np.split(codes.astype(np.uint8), ends), strict=True)),
        symbols=len(symbols),
        batch=16,
    )


SHAKESPEARE_CHAR = Workload(
    name="shakespeare-char",
    version=1,
    title="Next character of Shakespeare's plays, a two-layer pre-norm transformer",
    kind="real",
    model="transformer",
    loss="cross_entropy",
    metrics=("val_accuracy", "test_accuracy", "test_bits_per_character"),
    steps={"smoke": 30, "quick": 300, "standard": 750, "full": 5000},
    batch=16,
    arrays=_task,
    sources=("shakespeare",),
    licence=data.SOURCES["shakespeare"].licence,
)
