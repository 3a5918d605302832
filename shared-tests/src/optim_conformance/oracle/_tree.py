"""The oracle over a tree of parameters: which rule a leaf takes, and what a bad step does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optim_conformance.adapter import Tree
from optim_conformance.oracle._adamw import AdamW
from optim_conformance.oracle._base import Rule, Slots
from optim_conformance.oracle._pairs import Pairs
from optim_conformance.oracle._ranges import check_ranges
from optim_conformance.oracle._sign import Lion, Sign
from optim_conformance.oracle._stam import Stam
from optim_conformance.oracle._stam_lite import StamLite

_ONE_RULE = {"stam": Stam, "stam_lite": StamLite, "adamw": AdamW, "lion": Lion}
_TREE_WIDE = ("learning_rate", "nonfinite", "mu_dtype")
_BY_MODULUS = ("stam", "stam_lite")
"""Rules with a meaning of their own for complex tensors; the others see pairs of reals."""

_STAC_SIGN = ("sign_momentum", "sign_lr_scale")
_STAC_ADAMW = ("b1", "b2", "eps", "amsgrad")


def rules_for(opt: str, hparams: Mapping[str, Any], leaves: Tree) -> dict[str, Rule]:
    """Return each leaf's rule.

    Raises:
        ValueError: An optimizer without an oracle, a stac leaf without a role, or a value out of
            range.
        TypeError: A hyperparameter that the rule does not have.
    """
    check_ranges(opt, hparams)
    own = {k: v for k, v in hparams.items() if k not in _TREE_WIDE}
    if opt == "stac":
        return _stac_rules(own, leaves)
    if opt not in _ONE_RULE:
        raise ValueError(f"no oracle for {opt!r}; there is one for {sorted(_ONE_RULE)} and 'stac'")
    rule: Rule = _ONE_RULE[opt](**own)
    return dict.fromkeys(leaves, rule)


def _stac_rules(own: dict[str, Any], leaves: Tree) -> dict[str, Rule]:
    """Return STAC's rules: `roles` names the section of every leaf."""
    roles: Mapping[str, str] = own.pop("roles")
    decay = own.pop("weight_decay", 0.0)
    sign_decay = own.pop("sign_weight_decay", decay)
    adamw_decay = own.pop("adamw_weight_decay", decay)
    maximize = own.pop("maximize", False)
    sign = Sign(
        weight_decay=sign_decay,
        maximize=maximize,
        **{k: own.pop(k) for k in _STAC_SIGN if k in own},
    )
    adamw = AdamW(
        weight_decay=adamw_decay,
        maximize=maximize,
        **{k: own.pop(k) for k in _STAC_ADAMW if k in own},
    )
    if own:
        raise TypeError(f"stac has no hyperparameter {sorted(own)}")
    sections: dict[str, Rule] = {"sign": sign, "adamw": adamw}
    missing = [leaf for leaf in leaves if roles.get(leaf) not in sections]
    if missing:
        raise ValueError(f"roles must name 'sign' or 'adamw' for {missing}, it is {roles}")
    return {leaf: sections[roles[leaf]] for leaf in leaves}


class Oracle:
    """The reference run of one optimizer over a tree, in float64.

    Args:
        opt: A registry name, or "lion".
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
    """

    def __init__(self, opt: str, hparams: Mapping[str, Any], params: Tree) -> None:
        self.optimizer = opt
        self.hparams = dict(hparams)
        self.rules = rules_for(opt, hparams, params)
        self._lr = float(hparams.get("learning_rate", 1e-3))
        default = "skip" if opt == "stac" else "propagate"
        self._nonfinite = "zero" if hparams.get("parity") else hparams.get("nonfinite", default)
        self._params = {leaf: _wide(p) for leaf, p in params.items()}
        if opt not in _BY_MODULUS:
            pairs = {k for k, p in self._params.items() if np.iscomplexobj(p)}
            self.rules |= {k: Pairs(self.rules[k]) for k in pairs}
        self._slots: dict[str, Slots] = {k: self.rules[k].init(p) for k, p in self._params.items()}
        self.count = 0

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
            for leaf, rule in self.rules.items():
                self._params[leaf], self._slots[leaf] = rule.step(
                    self._params[leaf],
                    wide[leaf],
                    self._slots[leaf],
                    t=self.count,
                    lr=self._lr if lr is None else lr,
                )

    def params(self) -> dict[str, NDArray[Any]]:
        """Return copies of the parameters."""
        return {leaf: np.array(p) for leaf, p in self._params.items()}

    def state(self) -> dict[str, NDArray[Any]]:
        """Return the state under the canonical slots."""
        slots = {
            f"{slot}/{leaf}": np.array(value)
            for leaf, own in self._slots.items()
            for slot, value in own.items()
        }
        return {"count": np.array(self.count), **slots}

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
