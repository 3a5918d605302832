"""What a case is: hyperparameters and gradients, the same for every implementation.

Gradients are fixed sequences that do not depend on the parameters (open loop), so that a trajectory
of one implementation can be compared with another's step by step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from optim_conformance.adapter import Array, numpy_dtype

SHAPES: Mapping[str, tuple[int, ...]] = {"w": (4, 3), "b": (3,), "emb.table": (9, 4)}
SCALES: Mapping[str, float] = {"w": 1.0, "b": 0.05, "emb.table": 8.0}
"""Gradient scales that differ per leaf: a statistic taken over the whole tree must show."""

Gradients = Callable[[np.random.Generator, tuple[int, ...], int], Array]


def noise(rng: np.random.Generator, shape: tuple[int, ...], t: int) -> Array:
    """Dense Gaussian noise around a small drift."""
    return 0.2 + rng.standard_normal(shape)


def sparse(rng: np.random.Generator, shape: tuple[int, ...], t: int) -> Array:
    """One entry in eight, heavy-tailed: the variance proxy far above the squared scale."""
    return np.where(rng.random(shape) < 0.125, rng.standard_normal(shape), 0.0)


def shift(rng: np.random.Generator, shape: tuple[int, ...], t: int) -> Array:
    """Noise whose scale falls by 100 and whose mean changes sign on step 9."""
    x = rng.standard_normal(shape)
    return 1.0 + x if t < 9 else 0.01 * x - 0.05


def constant(rng: np.random.Generator, shape: tuple[int, ...], t: int) -> Array:
    """The same gradient each step: residuals fall towards 0."""
    return np.linspace(-1.0, 2.0, max(1, int(np.prod(shape)))).reshape(shape)


def tiny(rng: np.random.Generator, shape: tuple[int, ...], t: int) -> Array:
    """Entries about 1e-6, where the epsilons decide."""
    return 1e-6 * rng.standard_normal(shape)


def with_zeros(rng: np.random.Generator, shape: tuple[int, ...], t: int) -> Array:
    """Noise on two of three steps, exact zeros on the third, and zeros from the start in half."""
    x = rng.standard_normal(shape) * (t % 3 != 0)
    x.reshape(-1)[::2] = 0.0
    return x


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        name: Unique within the optimizer.
        hparams: Canonical hyperparameters; the rest take the contract's defaults.
        gradients: Kind of gradient.
        steps: Number of steps.
        schedule: Learning rate per step, or None for the constant one.
        seed: Seed of parameters and gradients.
        not_in: Dtypes in which the case means nothing.
        optimizer: A registry name, of the rule's file.
        requires: Capabilities without which the case means nothing; they follow from the
            hyperparameters and the schedule.
    """

    name: str
    hparams: Mapping[str, Any] = field(default_factory=dict)
    gradients: Gradients = noise
    steps: int = 24
    schedule: Callable[[int], float] | None = None
    seed: int = 0
    not_in: frozenset[str] = frozenset()
    optimizer: str = ""
    requires: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return f"{self.optimizer}:{self.name}"

    def params(self, dtype: str = "float64") -> dict[str, Array]:
        """Return the initial parameters, read-only, of magnitude at most 1."""
        rng = np.random.default_rng([self.seed, 1])
        return {
            leaf: _frozen(_cast(lambda shape=shape: rng.uniform(-1, 1, shape), dtype))
            for leaf, shape in SHAPES.items()
        }

    def grads(self, dtype: str = "float64") -> list[dict[str, Array]]:
        """Return the gradients of every step, read-only, rounded to `dtype`."""
        rng = np.random.default_rng([self.seed, 2])
        return [
            {
                leaf: _frozen(
                    _cast(
                        lambda shape=shape, leaf=leaf, t=t: self._draw(rng, shape, leaf, t), dtype
                    )
                )
                for leaf, shape in SHAPES.items()
            }
            for t in range(1, self.steps + 1)
        ]

    def _draw(self, rng: np.random.Generator, shape: tuple[int, ...], leaf: str, t: int) -> Array:
        return SCALES[leaf] * self.gradients(rng, shape, t)

    def lr(self, t: int) -> float | None:
        """Return the learning rate to hand to step `t`, None for the constant one."""
        return None if self.schedule is None else self.schedule(t)


def _cast(draw: Callable[[], Array], dtype: str) -> Array:
    """Draw once, or twice for a complex number, and round."""
    kind = numpy_dtype(dtype)
    return (draw() + 1j * draw() if kind.kind == "c" else draw()).astype(kind)


def _frozen(x: Array) -> Array:
    x.setflags(write=False)
    return x


def warmup_decay(t: int) -> float:
    """A schedule with a zero: 0 on the first step, up to 1e-2, and down again."""
    return 1e-2 * min(t - 1, 24 - t) / 12


COARSE: Mapping[str, Any] = {"learning_rate": 0.1, "weight_decay": 0.1}
"""Steps that a 16-bit parameter can show."""
