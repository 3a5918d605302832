r"""STAC: its sign section for one tensor, in float64, its two sections, and Lion.

    (1) m = sm m + (1 - sm) g
    (2) p = p (1 - lr_s wd_s) - lr_s sign(m),   lr_s = sign_lr_scale lr,   sign(nan) = nan

With sm = 0 this is signSGD and holds no state. Lion is the limit that it is held to:

    (3) p = p (1 - lr wd) - lr sign(b1 m + (1 - b1) g)
    (4) m = b2 m + (1 - b2) g
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from optim_conformance.cases import (
    COARSE,
    SHAPES,
    Case,
    shift,
    tiny,
    warmup_decay,
    with_zeros,
)
from optim_conformance.ranges import HALF_OPEN, NAN, NOT_NEGATIVE, Range, choice
from optim_conformance.rule import Bug, Leaf, Limit, OptimizerRule, Slots, Step
from optim_conformance.rules import adamw
from optim_conformance.rules.adamw import AdamW


@dataclass(frozen=True)
class Sign(Step):
    """The sign section; nothing in it depends on the count."""

    counts = False
    sign_momentum: float = 0.9
    sign_lr_scale: float = 1.0
    maximize: bool = False

    @property
    def share(self) -> float:
        """Return sign_lr_scale."""
        return self.sign_lr_scale

    def init(self, p: Leaf) -> Slots:
        """Return the state before the first step: none without momentum."""
        return {"mu": np.zeros_like(p)} if self.sign_momentum else {}

    def momentum(self, g: Leaf, s: Slots) -> Leaf:
        """Return m by (1)."""
        if not self.sign_momentum:
            return g
        return self.sign_momentum * s["mu"] + (1 - self.sign_momentum) * g

    def step(self, p: Leaf, g: Leaf, s: Slots, *, t: int, lr: float) -> tuple[Leaf, Slots]:
        """Take step `t`."""
        m = self.momentum(-g if self.maximize else g, s)
        lr_s = self.sign_lr_scale * lr
        p = p * (1 - lr_s * self.weight_decay) - lr_s * np.sign(m)  # (2)
        return p, ({"mu": m} if self.sign_momentum else {})

    def first_direction(self, g: Leaf) -> Leaf:
        """Return the sign of g."""
        return np.sign(g)


@dataclass(frozen=True)
class Lion(Step):
    """Lion, for the limit test."""

    b1: float = 0.9
    b2: float = 0.99

    def init(self, p: Leaf) -> Slots:
        """Return the state before the first step."""
        return {"mu": np.zeros_like(p)}

    def step(self, p: Leaf, g: Leaf, s: Slots, *, t: int, lr: float) -> tuple[Leaf, Slots]:
        """Take step `t`."""
        direction = np.sign(self.b1 * s["mu"] + (1 - self.b1) * g)
        p = p * (1 - lr * self.weight_decay) - lr * direction  # (3)
        return p, {"mu": self.b2 * s["mu"] + (1 - self.b2) * g}  # (4)


_SIGN = ("sign_momentum", "sign_lr_scale")
_ADAMW = ("b1", "b2", "eps", "amsgrad")


def sections(own: dict[str, Any], leaves: Iterable[str]) -> dict[str, Step]:
    """Return the rule of each leaf: `roles` names its section."""
    roles: Mapping[str, str] = own.pop("roles")
    decay = own.pop("weight_decay", 0.0)
    both = {"maximize": own.pop("maximize", False)}
    sign = Sign(
        weight_decay=own.pop("sign_weight_decay", decay),
        **both,
        **{k: own.pop(k) for k in _SIGN if k in own},
    )
    adam = AdamW(
        weight_decay=own.pop("adamw_weight_decay", decay),
        **both,
        **{k: own.pop(k) for k in _ADAMW if k in own},
    )
    if own:
        raise TypeError(f"stac has no hyperparameter {sorted(own)}")
    named: dict[str, Step] = {"sign": sign, "adamw": adam}
    missing = [leaf for leaf in leaves if roles.get(leaf) not in named]
    if missing:
        raise ValueError(f"roles must name 'sign' or 'adamw' for {missing}, it is {roles}")
    return {leaf: named[roles[leaf]] for leaf in leaves}


def last_on_adamw(leaves: Iterable[str]) -> Mapping[str, Any]:
    """Return roles: AdamW for the last leaf, the sign for the others.

    Example:
        >>> last_on_adamw(["w", "b"])
        {'roles': {'w': 'sign', 'b': 'adamw'}}
    """
    names = list(leaves)
    return {"roles": {**dict.fromkeys(names, "sign"), names[-1]: "adamw"} if names else {}}


def all_on(role: str) -> Mapping[str, Any]:
    """Return roles that are the same for every leaf of the cases."""
    return {"roles": dict.fromkeys(SHAPES, role)}


class _DecayWithPublicRate(Sign):
    """The sign section decays with the public learning rate and not with the scaled one."""

    def step(self, p: Leaf, g: Leaf, s: Slots, *, t: int, lr: float) -> tuple[Leaf, Slots]:
        moved, new = super().step(p, g, s, t=t, lr=lr)
        return moved - (1 - self.sign_lr_scale) * lr * self.weight_decay * p, new


class _SignOfZero(Sign):
    """The sign of 0 is 1."""

    def step(self, p: Leaf, g: Leaf, s: Slots, *, t: int, lr: float) -> tuple[Leaf, Slots]:
        moved, new = super().step(p, g, s, t=t, lr=lr)
        return np.where(self.momentum(g, s) == 0, moved - self.sign_lr_scale * lr, moved), new


_ROLES = last_on_adamw(SHAPES)
_MIXED = {"learning_rate": 3e-3, **_ROLES, "sign_lr_scale": 0.75}
_DECAYED = {**_MIXED, "weight_decay": 0.1}
_BAD_ROLES = {"w": "sgd", "b": "sign", "emb.table": "adamw"}

RULE = OptimizerRule(
    step=Sign,
    steps=sections,
    slots=adamw.RULE.slots,
    ranges={
        "learning_rate": NOT_NEGATIVE.but(-0.25, NAN),
        "sign_momentum": HALF_OPEN,
        "sign_lr_scale": NOT_NEGATIVE.but(-0.25, NAN),
        "b1": HALF_OPEN,
        "b2": HALF_OPEN,
        "eps": NOT_NEGATIVE,
        "weight_decay": NOT_NEGATIVE,
        "sign_weight_decay": NOT_NEGATIVE,
        "adamw_weight_decay": NOT_NEGATIVE,
        "amsgrad": choice(False, True, capability="amsgrad"),
        "maximize": choice(False, True, capability="maximize"),
        "roles": Range(lambda roles: True, "checked leaf by leaf", (_BAD_ROLES,)),
    },
    cases=(
        Case("explicit-roles", _ROLES),
        Case("mixed", _MIXED),
        Case("decay", _DECAYED, seed=1),
        Case(
            "decay-per-section",
            {**_MIXED, "sign_weight_decay": 0.3, "adamw_weight_decay": 0.02},
            seed=2,
        ),
        Case("stateless", {**_MIXED, "sign_momentum": 0.0}, seed=3),
        Case("slow-momentum", {**_MIXED, "sign_momentum": 0.98}, shift),
        Case("adamw-betas", {**_MIXED, "b1": 0.8, "b2": 0.95, "eps": 1e-4}, seed=4),
        Case("zeros", _DECAYED, with_zeros, seed=5),
        Case("zeros-stateless", {**_MIXED, "sign_momentum": 0.0}, with_zeros, seed=6),
        Case("tiny", _MIXED, tiny),
        Case("schedule", _MIXED, schedule=warmup_decay),
        Case("all-sign", {**_DECAYED, **all_on("sign")}, seed=7),
        Case("all-adamw", {**_DECAYED, **all_on("adamw")}, seed=8),
        Case("maximize", {**_MIXED, "maximize": True}),
        Case("amsgrad", {**_MIXED, "amsgrad": True}, shift),
    ),
    golden=(
        Case("roles"),
        Case("scaled", {"learning_rate": 0.01, "sign_lr_scale": 0.75, "weight_decay": 0.1}),
        Case("stateless", {"sign_momentum": 0.0}),
    ),
    bugs=(
        Bug("test_weight_decay_is_decoupled", _DecayWithPublicRate),
        Bug("test_zero_gradients", _SignOfZero),
    ),
    low_precision=(
        Case("coarse", {**COARSE, **_ROLES}, steps=12, not_in=frozenset({"float16"})),
        Case("coarse-sign", {**COARSE, **all_on("sign"), "sign_lr_scale": 0.75}, steps=12),
    ),
    complex=(Case("complex", _DECAYED),),
    for_leaves=last_on_adamw,
    plain={"sign_lr_scale": 0.75},
    nonfinite={"": "skip"},
    narrow={**all_on("sign"), "weight_decay": 0.0},
    coded=tuple(
        {"roles": dict.fromkeys(("w", "cube"), "sign"), "mu_dtype": code}
        for code in ("int8", "int4")
    ),
    signs=True,
    limits=(
        Limit(all_on("adamw"), AdamW()),
        Limit(
            {**all_on("sign"), "sign_momentum": 0.95, "sign_lr_scale": 1.0, "learning_rate": 1e-3},
            Lion(b1=0.95, b2=0.95),
        ),
    ),
    capabilities={"maximize": "stac accepts maximize=True"},
    betas=("b1", "b2"),
    renamed={
        "jax": {"mu_dtype": "sign_state_dtype", "roles": "partition"},
        "torch": {"mu_dtype": "sign_state_dtype"},
    },
)
