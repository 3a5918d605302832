"""Bugs in saving, restoring, skipping and compiling."""

from __future__ import annotations

from typing import Any

import numpy as np

from optim_conformance.adapter import Run, Tree
from optim_conformance.faults._plant import plant
from optim_conformance.numpy_adapter import NumpyRun


@plant("test_resume_is_bit_exact", "stam", "stam_lite", "adamw")
class CountLost(NumpyRun):
    """A restored run counts from 0 again."""

    def restore(self, blob: bytes) -> Run:
        run = super().restore(blob)
        assert isinstance(run, NumpyRun)
        run._state["count"] = np.zeros_like(run._state["count"])
        return run


@plant("test_resume_is_bit_exact")
class MomentLost(NumpyRun):
    """A restored run starts with moments of zero."""

    def restore(self, blob: bytes) -> Run:
        run = super().restore(blob)
        assert isinstance(run, NumpyRun)
        for key, value in run._state.items():
            if key.startswith("mu/"):
                run._state[key] = np.zeros_like(value)
        return run


@plant("test_low_precision_resume")
class WidenedOnRestore(NumpyRun):
    """Restoring widens 16-bit moments to float32, as plain torch does."""

    _widened = False

    def storage(self, slot: str) -> np.dtype[Any]:
        wide = self._widened and slot == "mu"
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
    """Saving takes part in the run: it rounds the moments."""

    def save(self) -> bytes:
        for key, value in self._state.items():
            if key.startswith("mu/"):
                self._state[key] = value.astype(np.float16).astype(value.dtype)
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


@plant("test_skip", "stam", "stam_lite", "stac")
class SkipIgnored(NumpyRun):
    """A bad step is taken with zeros for the bad entries."""

    def step(self, grads: Tree, *, lr: float | None = None) -> None:
        super().step(
            {k: np.where(np.isfinite(g), g, np.float32(0)) for k, g in grads.items()}, lr=lr
        )


@plant("test_skip", "stam", "stam_lite", "stac")
class SkipCounts(NumpyRun):
    """A skipped step advances the count."""

    def step(self, grads: Tree, *, lr: float | None = None) -> None:
        super().step(grads, lr=lr)
        if not _finite(grads):
            self._state["count"] = self._state["count"] + np.int32(1)


@plant("test_default_policy", "stac")
class SkipPerLeaf(NumpyRun):
    """Only the leaf with the bad entry is skipped."""

    def step(self, grads: Tree, *, lr: float | None = None) -> None:
        bad = {k for k, g in grads.items() if not np.isfinite(g).all()}
        params, state = self.params(), {k: v.copy() for k, v in self._state.items()}
        super().step({k: np.zeros_like(g) if k in bad else g for k, g in grads.items()}, lr=lr)
        self._params |= {k: v for k, v in params.items() if k in bad}
        self._state |= {k: v for k, v in state.items() if k.partition("/")[2] in bad}


@plant("test_zero", "stam", "stam_lite")
class ZeroForLargest(NumpyRun):
    """Bad entries count as the largest finite number and not as 0."""

    def step(self, grads: Tree, *, lr: float | None = None) -> None:
        super().step({k: np.nan_to_num(g, nan=0.5, posinf=9, neginf=-9) for k, g in grads.items()})


@plant("test_raise", "stac")
class RaisesTooLate(NumpyRun):
    """The refusal comes after the step."""

    def step(self, grads: Tree, *, lr: float | None = None) -> None:
        good = {k: np.where(np.isfinite(g), g, np.float32(0)) for k, g in grads.items()}
        super().step(good, lr=lr)
        if not _finite(grads):
            raise FloatingPointError("non-finite gradient")
