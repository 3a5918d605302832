"""Bugs in saving, restoring, skipping and compiling."""

from __future__ import annotations

from typing import Any

import numpy as np

from optim_conformance.adapter import Run, Tree
from optim_conformance.faults._plant import is_moment, moments, plant
from optim_conformance.numpy_adapter import NumpyRun
from optim_conformance.oracle import Oracle
from optim_conformance.rule import OptimizerRule


def counts(rule: OptimizerRule) -> bool:
    """Tell whether a step of every leaf depends on the count."""
    return rule.step.counts


def first_state(rule: OptimizerRule) -> Tree:
    """Return the state of the structural checks before their first step."""
    case = rule.plain_case()
    return Oracle(rule.name, case.hparams, case.params()).state()


def guarded(rule: OptimizerRule) -> bool:
    """Tell whether a rule has a policy for gradients that are not finite."""
    return bool(rule.nonfinite)


@plant("test_resume_is_bit_exact", counts)
class CountLost(NumpyRun):
    """A restored run counts from 0 again."""

    def restore(self, blob: bytes) -> Run:
        run = super().restore(blob)
        assert isinstance(run, NumpyRun)
        run._state["count"] = np.zeros_like(run._state["count"])
        return run


@plant("test_resume_is_bit_exact")
class ParametersLost(NumpyRun):
    """A restored run keeps the parameters that it was started with."""

    def restore(self, blob: bytes) -> Run:
        run = super().restore(blob)
        assert isinstance(run, NumpyRun)
        run._params = self._params
        return run


@plant("test_resume_is_bit_exact", moments)
class MomentLost(NumpyRun):
    """A restored run starts with moments of zero."""

    def restore(self, blob: bytes) -> Run:
        run = super().restore(blob)
        assert isinstance(run, NumpyRun)
        for key, value in run._state.items():
            if is_moment(self.optimizer, key):
                run._state[key] = np.zeros_like(value)
        return run


def _narrow(rule: OptimizerRule) -> bool:
    return any(not slot.scalar and not slot.wide for slot in rule.slots)


@plant("test_low_precision_resume", _narrow)
class WidenedOnRestore(NumpyRun):
    """Restoring widens 16-bit moments to float32, as plain torch does."""

    _widened = False

    def storage(self, slot: str) -> np.dtype[Any]:
        wide = self._widened and is_moment(self.optimizer, slot)
        return np.dtype(np.float32) if wide else super().storage(slot)

    def restore(self, blob: bytes) -> Run:
        run = super().restore(blob)
        assert isinstance(run, WidenedOnRestore)
        run._widened = True
        return run


@plant("test_restored_run_is_independent")
class RestoredInPlace(NumpyRun):
    """Restoring hands back the run itself."""

    def restore(self, blob: bytes) -> Run:
        run = super().restore(blob)
        assert isinstance(run, NumpyRun)
        self._params, self._state = run._params, run._state
        return self


@plant("test_saving_changes_nothing")
class SavingCounts(NumpyRun):
    """Saving takes part in the run: it rounds the parameters."""

    def save(self) -> bytes:
        for leaf, value in self._params.items():
            self._params[leaf] = value.astype(np.float16).astype(value.dtype)
        return super().save()


@plant("test_one_compilation")
class CompilesEachStep(NumpyRun):
    """Every step compiles."""

    _steps = 0

    def step(self, grads: Tree, *, lr: float | None = None) -> None:
        super().step(grads, lr=lr)
        self._steps += 1

    def compilations(self) -> int | None:
        return self._steps


def _finite(grads: Tree) -> bool:
    return all(np.isfinite(g).all() for g in grads.values())


@plant("test_skip", guarded)
class SkipIgnored(NumpyRun):
    """A bad step is taken with zeros for the bad entries."""

    def step(self, grads: Tree, *, lr: float | None = None) -> None:
        super().step(
            {k: np.where(np.isfinite(g), g, np.float32(0)) for k, g in grads.items()}, lr=lr
        )


@plant("test_skip", lambda rule: guarded(rule) and "count" in first_state(rule))
class SkipCounts(NumpyRun):
    """A skipped step advances the count."""

    def step(self, grads: Tree, *, lr: float | None = None) -> None:
        super().step(grads, lr=lr)
        if not _finite(grads):
            self._state["count"] = self._state["count"] + np.int32(1)


@plant("test_default_policy", lambda rule: rule.policy("") == "skip")
class SkipPerLeaf(NumpyRun):
    """Only the leaf with the bad entry is skipped."""

    def step(self, grads: Tree, *, lr: float | None = None) -> None:
        bad = {k for k, g in grads.items() if not np.isfinite(g).all()}
        params, state = self.params(), {k: v.copy() for k, v in self._state.items()}
        super().step({k: np.zeros_like(g) if k in bad else g for k, g in grads.items()}, lr=lr)
        self._params |= {k: v for k, v in params.items() if k in bad}
        self._state |= {k: v for k, v in state.items() if k.partition("/")[2] in bad}


@plant("test_zero", guarded)
class ZeroForLargest(NumpyRun):
    """Bad entries count as the largest finite number and not as 0."""

    def step(self, grads: Tree, *, lr: float | None = None) -> None:
        super().step({k: np.nan_to_num(g, nan=0.5, posinf=9, neginf=-9) for k, g in grads.items()})


@plant("test_raise", guarded)
class RaisesTooLate(NumpyRun):
    """The refusal comes after the step."""

    def step(self, grads: Tree, *, lr: float | None = None) -> None:
        good = {k: np.where(np.isfinite(g), g, np.float32(0)) for k, g in grads.items()}
        super().step(good, lr=lr)
        if not _finite(grads):
            raise FloatingPointError("non-finite gradient")
