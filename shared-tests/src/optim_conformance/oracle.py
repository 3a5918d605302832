"""The independent oracle: float64 NumPy, written from the formulas of the optimizers' contract.

It imports nothing that is under test, so that a mistake in the shared core cannot hide here. The
rules, in `rules/`, number the equations in their docstrings; each line of code names its number.
This module runs them over a tree of parameters, and knows what a bad step does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optim_conformance.adapter import Tree
from optim_conformance.rule import Slots, Step
from optim_conformance.rules import RULES


class Oracle:
    """The reference run of one optimizer over a tree, in float64.

    Args:
        opt: A registry name.
        hparams: Canonical hyperparameters; missing ones take the contract's default.
        params: The starting point; converted to float64 or complex128.

    Example:
        >>> run = Oracle("adamw", {"learning_rate": 0.1}, {"w": np.array([1.0, -1.0])})
        >>> run.step({"w": np.array([2.0, 0.5])})
        >>> run.params()["w"].round(6).tolist()
        [0.9, -1.1]
        >>> run.step({"w": np.array([-1.0, 0.5])})
        >>> run.params()["w"].round(6).tolist()
        [0.873366, -1.2]

    Raises:
        ValueError: There is no such optimizer, a value is out of range, or a leaf has no rule.
        TypeError: A hyperparameter that the optimizer does not have.
    """

    def __init__(self, opt: str, hparams: Mapping[str, Any], params: Tree) -> None:
        if opt not in RULES:
            raise ValueError(f"no oracle for {opt!r}; there is one for {list(RULES)}")
        rule = RULES[opt]
        self.optimizer = opt
        self.hparams = dict(hparams)
        self.rules = rule.steps_for(hparams, params)
        self._lr = float(hparams.get("learning_rate", 1e-3))
        policy = hparams.get("nonfinite", rule.policy(""))
        self._nonfinite = "zero" if hparams.get("parity") else policy
        self._params = {leaf: _wide(p) for leaf, p in params.items()}
        whole = {k for k, p in self._params.items() if rule.by_modulus or not np.iscomplexobj(p)}
        self._pairs = set(self._params) - whole
        self.count = 0
        self.take(self.rules)

    def take(self, rules: Mapping[str, Step]) -> None:
        """Go on by other rules, from their initial states."""
        self.rules = dict(rules)
        self._slots: dict[str, Slots] = {}
        for leaf, p in self._params.items():
            paired = leaf in self._pairs
            slots = rules[leaf].init(_real(p) if paired else p)
            self._slots[leaf] = _complex(slots, p.shape) if paired else slots

    def step(self, grads: Tree, *, lr: float | None = None) -> None:
        """Take one step, or none where the policy for non-finite gradients says so.

        Raises:
            FloatingPointError: A non-finite gradient with nonfinite="raise".
        """
        wide = {leaf: _wide(grads[leaf]) for leaf in self._params}
        bad = [leaf for leaf, g in wide.items() if not np.isfinite(g).all()]
        if bad and self._nonfinite == "raise":
            raise FloatingPointError(f"non-finite gradient in {bad}")
        if bad and self._nonfinite == "skip":
            return
        if self._nonfinite == "zero":
            wide = {leaf: np.where(np.isfinite(g), g, 0.0) for leaf, g in wide.items()}
        self.count += 1
        with np.errstate(invalid="ignore", over="ignore"):
            for leaf, g in wide.items():
                self._take_leaf(leaf, g, self._lr if lr is None else lr)

    def _take_leaf(self, leaf: str, g: NDArray[Any], lr: float) -> None:
        rule, p, slots = self.rules[leaf], self._params[leaf], self._slots[leaf]
        if leaf in self._pairs:
            parts = {k: _real(v) for k, v in slots.items()}
            moved, new = rule.step(_real(p), _real(g), parts, t=self.count, lr=lr)
            self._params[leaf] = _complex({"p": moved}, p.shape)["p"]
            self._slots[leaf] = _complex(new, p.shape)
        else:
            self._params[leaf], self._slots[leaf] = rule.step(p, g, slots, t=self.count, lr=lr)

    def params(self) -> dict[str, NDArray[Any]]:
        """Return copies of the parameters."""
        return {leaf: np.array(p) for leaf, p in self._params.items()}

    def state(self) -> dict[str, NDArray[Any]]:
        """Return the state under the canonical slots; `count` where a leaf's step depends on it."""
        slots = {
            f"{slot}/{leaf}": np.array(value)
            for leaf, own in self._slots.items()
            for slot, value in own.items()
        }
        counted = any(rule.counts for rule in self.rules.values())
        return {"count": np.array(self.count), **slots} if counted else slots

    def load(self, params: Tree, state: Tree) -> None:
        """Continue from a state that was observed elsewhere, to judge one step at a time."""
        self.count = int(state["count"]) if "count" in state else self.count
        for leaf in self._params:
            self._params[leaf] = _wide(params[leaf])
            self._slots[leaf] = {k: _wide(state[f"{k}/{leaf}"]) for k in self._slots[leaf]}


def _wide(x: Any) -> NDArray[Any]:
    """Return a copy in float64, or complex128."""
    array = np.asarray(x)
    return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)


def _real(x: Any) -> NDArray[Any]:
    """Return the parts of complex entries as entries of their own."""
    return np.ascontiguousarray(x).reshape(-1).view(np.float64)


def _complex(slots: Slots, shape: tuple[int, ...]) -> Slots:
    return {k: v.view(np.complex128).reshape(shape) for k, v in slots.items()}
