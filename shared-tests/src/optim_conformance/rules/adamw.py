r"""AdamW for one tensor, in float64.

    (1) m = b1 m + (1 - b1) g
    (2) v = b2 v + (1 - b2) g^2
    (3) p = p (1 - lr wd) - lr (m/(1-b1^t)) / (sqrt(v/(1-b2^t)) + eps)

With amsgrad the largest v so far stands in (3) in place of v.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from optim_conformance.cases import COARSE, Case, shift, warmup_decay
from optim_conformance.ranges import HALF_OPEN, NOT_NEGATIVE, choice
from optim_conformance.rule import MU, NU, NU_MAX, Bug, Leaf, OptimizerRule, Slots, Step


@dataclass(frozen=True)
class AdamW(Step):
    """The rule; the weight decay has no default that all libraries share, so it is 0 here."""

    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    amsgrad: bool = False
    maximize: bool = False

    def init(self, p: Leaf) -> Slots:
        """Return the state before the first step."""
        slots: Slots = {"mu": np.zeros_like(p), "nu": np.zeros_like(p)}
        if self.amsgrad:
            slots["nu_max"] = np.zeros_like(p)
        return slots

    def step(self, p: Leaf, g: Leaf, s: Slots, *, t: int, lr: float) -> tuple[Leaf, Slots]:
        """Take step `t`."""
        if self.maximize:
            g = -g
        new: Slots = {
            "mu": self.b1 * s["mu"] + (1 - self.b1) * g,  # (1)
            "nu": self.b2 * s["nu"] + (1 - self.b2) * np.square(g),  # (2)
        }
        v = new["nu"]
        if self.amsgrad:
            v = new["nu_max"] = np.maximum(s["nu_max"], v)
        direction = (new["mu"] / (1 - self.b1**t)) / (np.sqrt(v / (1 - self.b2**t)) + self.eps)
        return p * (1 - lr * self.weight_decay) - lr * direction, new  # (3)

    def first_direction(self, g: Leaf) -> Leaf:
        """Return g over its own magnitude."""
        return g / (np.abs(g) + 1e-8)


class _UnscaledDecay(AdamW):
    """The decay is not multiplied by the learning rate."""

    def step(self, p: Leaf, g: Leaf, s: Slots, *, t: int, lr: float) -> tuple[Leaf, Slots]:
        moved, new = super().step(p, g, s, t=t, lr=lr)
        return moved + (lr - 1) * self.weight_decay * p, new


RULE = OptimizerRule(
    step=AdamW,
    slots=(MU, NU, NU_MAX),
    # As a part of STAC it refuses what STAC refuses.
    ranges={
        "learning_rate": NOT_NEGATIVE.but(),
        "b1": HALF_OPEN.but(),
        "b2": HALF_OPEN.but(),
        "eps": NOT_NEGATIVE.but(),
        "weight_decay": NOT_NEGATIVE.but(),
        "amsgrad": choice(False, True, capability="amsgrad"),
    },
    cases=(
        Case("plain", {"learning_rate": 1e-2, "weight_decay": 0.0}),
        Case("decay", {"learning_rate": 1e-2, "weight_decay": 0.1, "b1": 0.8, "b2": 0.95}),
        Case("shift", {"learning_rate": 3e-3, "weight_decay": 0.01, "eps": 1e-3}, shift),
        Case("schedule", {"learning_rate": 1e-3, "weight_decay": 0.1}, schedule=warmup_decay),
        Case("amsgrad", {"learning_rate": 1e-2, "weight_decay": 0.0, "amsgrad": True}, shift),
    ),
    golden=(Case("decay", {"learning_rate": 0.01, "weight_decay": 0.1}),),
    bugs=(Bug("test_weight_decay_is_decoupled", _UnscaledDecay),),
    low_precision=(Case("coarse", COARSE, steps=12, not_in=frozenset({"float16"})),),
    capabilities={"amsgrad": "stac or adamw accepts amsgrad=True"},
    betas=("b1", "b2"),
    part_of=("stac", "adamw"),
    coded=({"moment_dtype": "int8"}, {"moment_dtype": "int8", "amsgrad": True}),
    renamed={
        "jax": {"roles": "partition", "moment_dtype": "adamw_state_dtype"},
        "torch": {"moment_dtype": "adamw_state_dtype"},
    },
)
