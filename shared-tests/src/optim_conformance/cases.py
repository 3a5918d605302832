"""The cases: which optimizer, with which hyperparameters, on which gradients.

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

MIXED_ROLES: Mapping[str, str] = {"w": "sign", "b": "sign", "emb.table": "adamw"}

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
        optimizer: A registry name.
        hparams: Canonical hyperparameters; the rest take the contract's defaults.
        gradients: Kind of gradient.
        requires: Capabilities without which the case means nothing.
        steps: Number of steps.
        schedule: Learning rate per step, or None for the constant one.
        seed: Seed of parameters and gradients.
        not_in: Dtypes in which the case means nothing.
    """

    name: str
    optimizer: str
    hparams: Mapping[str, Any] = field(default_factory=dict)
    gradients: Gradients = noise
    requires: frozenset[str] = frozenset()
    steps: int = 24
    schedule: Callable[[int], float] | None = None
    seed: int = 0
    not_in: frozenset[str] = frozenset()

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


def _needs(*capabilities: str) -> frozenset[str]:
    return frozenset(capabilities)


STRONG = {"learning_rate": 1e-2, "b1_base": 0.95, "adapt_strength": 0.5, "weight_decay": 0.1}
QUICK = {"learning_rate": 3e-3, "b2": 0.9, "tau_decay": 0.8}
PARITY = {"parity": "stam-optimizer-0.1.0"}
CORRECTED = {"statistics": "corrected"}

STAM = (
    Case("defaults", "stam"),
    Case("no-decay", "stam", {"weight_decay": 0.0, "learning_rate": 1e-2}),
    Case("strong", "stam", STRONG),
    Case("limit-adamw", "stam", {"adapt_strength": 0.0, "learning_rate": 1e-2}),
    Case("low-b1", "stam", {"b1_base": 0.4, "adapt_strength": 0.5}),
    Case("quick-statistics", "stam", QUICK, shift),
    Case("low-threshold", "stam", {**QUICK, "fallback_threshold": 1.2}, sparse),
    Case("sparse", "stam", {"learning_rate": 1e-2}, sparse, seed=1),
    Case("shift", "stam", {"learning_rate": 1e-2}, shift, seed=2),
    Case("constant", "stam", {}, constant),
    Case("tiny", "stam", {}, tiny),
    Case("large-eps", "stam", {"eps": 1e-2}, seed=3),
    Case("eps-root", "stam", {"eps_root": 1e-2, "learning_rate": 1e-2}, with_zeros, seed=3),
    Case("zeros", "stam", {}, with_zeros, seed=4),
    Case("schedule", "stam", {}, requires=_needs("lr"), schedule=warmup_decay),
    Case("corrected", "stam", {**CORRECTED, "learning_rate": 1e-2}, requires=_needs("corrected")),
    Case("corrected-sparse", "stam", CORRECTED, sparse, _needs("corrected"), seed=5),
    Case("corrected-shift", "stam", CORRECTED, shift, _needs("corrected"), seed=6),
    Case("corrected-zeros", "stam", CORRECTED, with_zeros, _needs("corrected"), seed=8),
    Case("corrected-tiny", "stam", CORRECTED, tiny, _needs("corrected")),
    Case(
        "corrected-threshold",
        "stam",
        {**CORRECTED, **QUICK, "fallback_threshold": 1.5},
        sparse,
        _needs("corrected"),
    ),
    Case("parity", "stam", {**PARITY, "learning_rate": 1e-2}, requires=_needs("parity")),
    Case(
        "parity-jump",
        "stam",
        {**PARITY, **QUICK, "fallback_threshold": 1.5},
        sparse,
        _needs("parity"),
        seed=7,
    ),
)

STAM_LITE = (
    Case("defaults", "stam_lite"),
    Case("no-decay", "stam_lite", {"weight_decay": 0.0, "learning_rate": 1e-2}),
    Case("strong", "stam_lite", STRONG),
    Case("every-step", "stam_lite", {"beta1_update_interval": 1}, shift),
    Case("interval-7", "stam_lite", {"beta1_update_interval": 7, "moment_decay": 0.8}, shift),
    Case("no-adaptation", "stam_lite", {"adapt_strength": 0.0, "learning_rate": 1e-2}),
    Case("low-b1", "stam_lite", {"b1_base": 0.4, "adapt_strength": 0.5}),
    Case("sparse", "stam_lite", {"learning_rate": 1e-2}, sparse, seed=1),
    Case("constant", "stam_lite", {}, constant),
    Case("tiny", "stam_lite", {}, tiny),
    Case("large-eps", "stam_lite", {"eps": 1e-2}, seed=3),
    Case("eps-root", "stam_lite", {"eps_root": 1e-2, "learning_rate": 1e-2}, with_zeros, seed=3),
    Case("zeros", "stam_lite", {}, with_zeros, seed=4),
    Case("schedule", "stam_lite", {}, requires=_needs("lr"), schedule=warmup_decay),
    Case("parity", "stam_lite", {**PARITY, "learning_rate": 1e-2}, requires=_needs("parity")),
    Case("parity-tiny", "stam_lite", PARITY, tiny, _needs("parity"), seed=5),
)

_STAC = {"learning_rate": 3e-3, "roles": MIXED_ROLES, "sign_lr_scale": 0.75}

STAC = (
    Case("explicit-roles", "stac", {"roles": MIXED_ROLES}),
    Case("mixed", "stac", _STAC),
    Case("decay", "stac", {**_STAC, "weight_decay": 0.1}, seed=1),
    Case(
        "decay-per-section",
        "stac",
        {**_STAC, "sign_weight_decay": 0.3, "adamw_weight_decay": 0.02},
        seed=2,
    ),
    Case("stateless", "stac", {**_STAC, "sign_momentum": 0.0}, seed=3),
    Case("slow-momentum", "stac", {**_STAC, "sign_momentum": 0.98}, shift),
    Case("adamw-betas", "stac", {**_STAC, "b1": 0.8, "b2": 0.95, "eps": 1e-4}, seed=4),
    Case("zeros", "stac", {**_STAC, "weight_decay": 0.1}, with_zeros, seed=5),
    Case("zeros-stateless", "stac", {**_STAC, "sign_momentum": 0.0}, with_zeros, seed=6),
    Case("tiny", "stac", _STAC, tiny),
    Case("schedule", "stac", _STAC, requires=_needs("lr"), schedule=warmup_decay),
    Case(
        "all-sign",
        "stac",
        {**_STAC, "roles": dict.fromkeys(SHAPES, "sign"), "weight_decay": 0.1},
        seed=7,
    ),
    Case(
        "all-adamw",
        "stac",
        {**_STAC, "roles": dict.fromkeys(SHAPES, "adamw"), "weight_decay": 0.1},
        seed=8,
    ),
    Case("maximize", "stac", {**_STAC, "maximize": True}, requires=_needs("maximize")),
    Case("amsgrad", "stac", {**_STAC, "amsgrad": True}, shift, _needs("amsgrad")),
)

ADAMW = (
    Case("plain", "adamw", {"learning_rate": 1e-2, "weight_decay": 0.0}),
    Case("decay", "adamw", {"learning_rate": 1e-2, "weight_decay": 0.1, "b1": 0.8, "b2": 0.95}),
    Case("shift", "adamw", {"learning_rate": 3e-3, "weight_decay": 0.01, "eps": 1e-3}, shift),
    Case(
        "schedule",
        "adamw",
        {"learning_rate": 1e-3, "weight_decay": 0.1},
        requires=_needs("lr"),
        schedule=warmup_decay,
    ),
    Case(
        "amsgrad",
        "adamw",
        {"learning_rate": 1e-2, "weight_decay": 0.0, "amsgrad": True},
        shift,
        _needs("amsgrad"),
    ),
)

CASES: tuple[Case, ...] = (*STAM, *STAM_LITE, *STAC, *ADAMW)


_COARSE = {"learning_rate": 0.1, "weight_decay": 0.1}
"""Steps that a 16-bit parameter can show."""

_NO_HALF = frozenset({"float16"})

LOW_PRECISION: tuple[Case, ...] = (
    Case("coarse", "stam", _COARSE, steps=12),
    Case("coarse-shift", "stam", {**_COARSE, **QUICK, "learning_rate": 0.1}, shift, steps=16),
    Case("coarse", "stam_lite", _COARSE, steps=12),
    Case("coarse-shift", "stam_lite", {**_COARSE, "moment_decay": 0.8}, shift, steps=16),
    Case("coarse", "stac", {**_COARSE, "roles": MIXED_ROLES}, steps=12, not_in=_NO_HALF),
    Case(
        "coarse-sign",
        "stac",
        {**_COARSE, "roles": dict.fromkeys(SHAPES, "sign"), "sign_lr_scale": 0.75},
        steps=12,
    ),
    Case("coarse", "adamw", _COARSE, steps=12, not_in=_NO_HALF),
)


COMPLEX: tuple[Case, ...] = (
    Case("complex", "stam", {"learning_rate": 1e-2, "weight_decay": 0.1}),
    Case("complex-corrected", "stam", CORRECTED, shift, _needs("corrected")),
    Case("complex", "stam_lite", {"learning_rate": 1e-2, "weight_decay": 0.1}),
    Case("complex", "stac", {**_STAC, "weight_decay": 0.1}),
)


def plain_case(opt: str) -> Case:
    """Return the case of `opt` that structural checks use: no special mode, a visible decay."""
    hparams: dict[str, Any] = {"learning_rate": 1e-2, "weight_decay": 0.1}
    if opt == "stac":
        hparams |= {"roles": MIXED_ROLES, "sign_lr_scale": 0.75}
    return Case("plain", opt, hparams, steps=8, seed=9)
