"""Bugs about who owns which array, and in which dtype."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import ml_dtypes
import numpy as np

from optim_conformance._codes import SQUARES, Code
from optim_conformance.adapter import Array, Tree, numpy_dtype
from optim_conformance.faults._plant import is_moment, moments, plant
from optim_conformance.numpy_adapter import NumpyRun
from optim_conformance.rule import OptimizerRule
from optim_conformance.rules import RULES


def statistics(rule: OptimizerRule) -> list[str]:
    """Return the names of a rule's averages that are one number per tensor."""
    return [slot.name for slot in rule.slots if slot.scalar and slot.limits is None]


@plant("test_inputs_are_not_mutated")
class GradientsAsScratch(NumpyRun):
    """The gradients are scaled in place."""

    def step(self, grads: Tree, *, lr: float | None = None) -> None:
        super().step(grads, lr=lr)
        for g in grads.values():
            if g.flags.writeable:
                g *= 0.9


@plant("test_inputs_are_not_mutated")
class ParametersInPlace(NumpyRun):
    """The caller's parameters are updated in place."""

    def __init__(self, opt: str, hparams: Mapping[str, Any], params: Tree, dtype: str) -> None:
        super().__init__(opt, hparams, params, dtype)
        self._given = params

    def step(self, grads: Tree, *, lr: float | None = None) -> None:
        super().step(grads, lr=lr)
        for leaf, p in self._given.items():
            if p.flags.writeable:
                p[...] = self._params[leaf]


@plant("test_gradients_are_not_kept")
class GradientKept(NumpyRun):
    """The run keeps the caller's gradient and reads it on the next step."""

    _last: Tree | None = None

    def step(self, grads: Tree, *, lr: float | None = None) -> None:
        if self._last is not None:
            for leaf, g in self._last.items():
                self._params[leaf] = self._params[leaf] + np.float32(1e-3) * g
        super().step(grads, lr=lr)
        self._last = grads


@plant("test_returned_trees_are_copies", moments)
class LiveState(NumpyRun):
    """The state is handed out and not copied."""

    def state(self) -> Tree:
        return self._state


@plant("test_returned_trees_are_copies")
class LiveParameters(NumpyRun):
    """The parameters are handed out and not copied."""

    def params(self) -> Tree:
        return self._params


@plant("test_runs_are_independent", moments)
class SharedState(NumpyRun):
    """All runs share one state."""

    _shared: ClassVar[dict[tuple[str, ...], dict[str, Array]]] = {}
    _stepped = False

    def step(self, grads: Tree, *, lr: float | None = None) -> None:
        key = (self.optimizer, *self._state)
        if self._stepped:
            self._state = self._shared[key]
        super().step(grads, lr=lr)
        self._shared[key], self._stepped = self._state, True


@plant("test_dtypes_and_shapes")
class WidenedParameters(NumpyRun):
    """The parameters come back in float64."""

    def params(self) -> Tree:
        return {k: v.astype(np.float64) for k, v in super().params().items()}


@plant("test_dtypes_and_shapes", moments)
class DriftingState(NumpyRun):
    """The moments are widened on the second step."""

    _steps = 0

    def step(self, grads: Tree, *, lr: float | None = None) -> None:
        super().step(grads, lr=lr)
        self._steps += 1

    def state(self) -> Tree:
        late = self._steps > 1
        return {
            k: v.astype(np.float64) if late and is_moment(self.optimizer, k) else v
            for k, v in super().state().items()
        }


@plant("test_state_storage", statistics)
class NarrowStatistics(NumpyRun):
    """Statistics are stored in the parameter's dtype."""

    def storage(self, slot: str) -> np.dtype[Any]:
        narrow = slot in statistics(RULES[self.optimizer])
        return numpy_dtype(self.dtype) if narrow else super().storage(slot)


@plant("test_low_precision_step", statistics)
class NarrowAccumulation(NumpyRun):
    """Statistics pass through bfloat16 on their way to a float32 store."""

    def stored(self, state: Tree) -> dict[str, Array]:
        names = statistics(RULES[self.optimizer])
        return {
            k: v.astype(ml_dtypes.bfloat16).astype(v.dtype) if k.partition("/")[0] in names else v
            for k, v in super().stored(state).items()
        }


@plant("test_moment_storage", lambda rule: rule.narrow is not None)
class StorageIgnored(NumpyRun):
    """The storage dtype of the first moment is accepted and ignored."""

    def __init__(self, opt: str, hparams: Mapping[str, Any], params: Tree, dtype: str) -> None:
        super().__init__(opt, {k: v for k, v in hparams.items() if k != "mu_dtype"}, params, dtype)


@plant("test_sign_before_rounding", lambda rule: rule.signs)
class SignAfterRounding(NumpyRun):
    """The sign is taken from the momentum as it is stored."""

    def step(self, grads: Tree, *, lr: float | None = None) -> None:
        before, rate = self._params, self.hparams["learning_rate"] if lr is None else lr
        super().step(grads, lr=lr)
        for leaf, rule in self.oracle(before).rules.items():
            sign = np.sign(self._state[f"mu/{leaf}"].astype(np.float32))
            moved = before[leaf] - rate * rule.share * sign
            self._params[leaf] = moved.astype(before[leaf].dtype)


@plant("test_sign_before_rounding", lambda rule: rule.signs)
class OverflowingStorage(NumpyRun):
    """A moment beyond the range of its storage becomes infinite."""

    def stored(self, state: Tree) -> dict[str, Array]:
        with np.errstate(over="ignore"):
            return {k: v.astype(self.storage(k.split("/")[0])) for k, v in state.items()}


@plant("test_deterministic")
class Noisy(NumpyRun):
    """Each step adds noise in the last bits."""

    _generator: ClassVar[np.random.Generator] = np.random.default_rng()

    def step(self, grads: Tree, *, lr: float | None = None) -> None:
        super().step(grads, lr=lr)
        for leaf, p in self._params.items():
            self._params[leaf] = (p * (1 + 1e-6 * self._generator.random(p.shape))).astype(p.dtype)


def coded(rule: OptimizerRule) -> bool:
    """Tell whether a rule has moments in codes."""
    return bool(rule.coded)


@plant("test_codes", coded)
class CodesToNearest(NumpyRun):
    """Every code is the nearest, also where noise should decide."""

    def encoded(self, code: Code, rows: Array) -> tuple[Array, Array]:
        return code.encoded(rows, np.full(rows.shape, 0.5))


@plant("test_codes", lambda rule: "nu" in moments(rule) and rule.part_of and rule.coded)
class SquaresToZero(NumpyRun):
    """A small second moment is stored as 0."""

    def encoded(self, code: Code, rows: Array) -> tuple[Array, Array]:
        stored, scale = super().encoded(code, rows)
        return np.where(stored < 2, 0, stored) if code is SQUARES else stored, scale


@plant("test_codes", coded)
class ScalesOfRows(NumpyRun):
    """A row has one scale for all of its blocks."""

    def encoded(self, code: Code, rows: Array) -> tuple[Array, Array]:
        stored, scale = super().encoded(code, rows)
        return stored, np.broadcast_to(scale.max(axis=1, keepdims=True), scale.shape)
