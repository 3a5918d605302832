"""Bugs across leaves, and in what is accepted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from optim_conformance._base import errors_of
from optim_conformance.adapter import Tree
from optim_conformance.faults._plant import moments, plant
from optim_conformance.numpy_adapter import NumpyRun
from optim_conformance.rules import RULES


@plant("test_split_tree_equals_joint_tree", lambda rule: rule.slot("s2") or rule.slot("e2"))
class GlobalStatistics(NumpyRun):
    """The statistics are those of the whole tree."""

    def step(self, grads: Tree, *, lr: float | None = None) -> None:
        super().step(grads, lr=lr)
        for slot in ("s2", "e2"):
            own = [k for k in self._state if k.startswith(f"{slot}/")]
            for key in own:
                self._state[key] = np.asarray(np.mean([self._state[k] for k in own]), np.float32)


@plant("test_order_and_names_do_not_matter")
class StateByPosition(NumpyRun):
    """Moments belong to positions in the sorted tree, gradients to positions as they come."""

    def step(self, grads: Tree, *, lr: float | None = None) -> None:
        names = sorted(self._params)
        by_size = {
            k: [g for g in grads.values() if g.shape == self._params[k].shape] for k in names
        }
        given = dict(zip(names, grads.values(), strict=True))
        fits = all(given[k].shape == self._params[k].shape for k in names)
        moved = given if fits else {k: by_size[k][0] for k in names}
        if list(grads) == names:
            moved = {k: -g if k == names[0] else g for k, g in moved.items()}
        super().step(moved, lr=lr)


@plant("test_unknown_hyperparameter")
class SwallowsKeywords(NumpyRun):
    """Unknown keywords are swallowed."""

    def __init__(self, opt: str, hparams: Mapping[str, Any], params: Tree, dtype: str) -> None:
        known = {k: v for k, v in hparams.items() if k != "weight_decya"}
        super().__init__(opt, known, params, dtype)


@plant("test_bad_hyperparameter", errors_of)
class ClampsQuietly(NumpyRun):
    """A value out of range is replaced and not refused."""

    def __init__(self, opt: str, hparams: Mapping[str, Any], params: Tree, dtype: str) -> None:
        fixed = {
            k: min(max(v, 1e-8), 0.5) if isinstance(v, float) and v == v else v
            for k, v in hparams.items()
        }
        super().__init__(opt, fixed, params, dtype)


@plant("test_zero_learning_rate")
class RateBakedIn(NumpyRun):
    """The learning rate of the step is ignored."""

    def step(self, grads: Tree, *, lr: float | None = None) -> None:
        super().step(grads)


@plant("test_constant_schedule")
class RateScaledTwice(NumpyRun):
    """A learning rate handed to the step is warmed up once more."""

    def step(self, grads: Tree, *, lr: float | None = None) -> None:
        super().step(grads, lr=None if lr is None else lr * 0.5)


@plant("test_trajectory_params", lambda rule: "tau_decay" in rule.ranges)
class WrongDefault(NumpyRun):
    """The default of b2 is another library's."""

    def __init__(self, opt: str, hparams: Mapping[str, Any], params: Tree, dtype: str) -> None:
        super().__init__(opt, {"b2": 0.99, **hparams}, params, dtype)


@plant("test_trajectory_state")
class ExtraState(NumpyRun):
    """A second copy of the parameters is stored."""

    def state(self) -> Tree:
        return {**super().state(), **{f"master/{k}": v for k, v in self._params.items()}}


@plant("test_state_storage", moments)
class MissingSlot(NumpyRun):
    """The moments of a leaf are not shown."""

    def state(self) -> Tree:
        hidden = {f"{name}/w" for name in moments(RULES[self.optimizer])}
        return {k: v for k, v in super().state().items() if k not in hidden}


@plant("test_adapter_declares_what_exists", strangers=("sgd",))
class UnknownOptimizer(NumpyRun):
    """The adapter offers an optimizer that the suite does not know."""


@plant("test_trajectory_params", lambda rule: "maximize" in rule.ranges)
class MaximizeIgnored(NumpyRun):
    """The direction of the objective is accepted and ignored."""

    def __init__(self, opt: str, hparams: Mapping[str, Any], params: Tree, dtype: str) -> None:
        known = {k: v for k, v in hparams.items() if k != "maximize"}
        super().__init__(opt, known, params, dtype)
