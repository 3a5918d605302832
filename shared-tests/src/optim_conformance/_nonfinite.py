"""Checks on gradients that are not finite, under every policy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from optim_conformance._base import Checks, for_optimizers, writable
from optim_conformance._compare import Terms, close, identical, slot_of
from optim_conformance.adapter import Array, Run, Tree
from optim_conformance.cases import Case, plain_case
from optim_conformance.oracle import Oracle
from optim_conformance.tolerances import free_running

DEFAULTS = {"stam": "propagate", "stam_lite": "propagate", "stac": "skip"}

BAD = {"nan": np.nan, "inf": np.inf, "minus-inf": -np.inf}

STATISTICS = ("s2", "tau", "e1", "e2")

bad_values = pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())


class NonfiniteChecks(Checks):
    """One bad entry in one leaf, on the fourth of eight steps."""

    @for_optimizers("stam", "stam_lite", "stac")
    @bad_values
    def test_skip(self, opt: str, bad: float) -> None:
        """The bad step leaves every bit of parameters, state and counters."""
        case, grads = self._bad_case(opt, "skip", bad)
        run = self.drive(self.start(case), grads[:3])
        params, state = run.params(), run.state()
        run.step(grads[3])
        identical(run.params(), params, f"{opt}, parameters over a skipped step")
        identical(run.state(), state, f"{opt}, state over a skipped step")
        self.drive(run, grads[4:])
        without = self.drive(self.start(case), grads[:3] + grads[4:])
        identical(run.params(), without.params(), f"{opt}, after a skipped step")
        identical(run.state(), without.state(), f"{opt}, after a skipped step")

    @for_optimizers("stam", "stam_lite")
    @bad_values
    def test_zero(self, opt: str, bad: float) -> None:
        """Bad entries count as 0, in the statistics too."""
        case, grads = self._bad_case(opt, "zero", bad)
        replaced = [
            {k: np.where(np.isfinite(v), v, np.float32(0)) for k, v in g.items()} for g in grads
        ]
        run = self.drive(self.start(case), grads)
        expected = self.drive(self.start(case), replaced)
        identical(run.params(), expected.params(), f"{opt}, bad entries against zeros")
        identical(run.state(), expected.state(), f"{opt}, bad entries against zeros")

    @for_optimizers("stac")
    @bad_values
    def test_raise(self, opt: str, bad: float) -> None:
        """The bad step raises and leaves every bit; the run can go on."""
        case, grads = self._bad_case(opt, "raise", bad)
        run = self.drive(self.start(case), grads[:3])
        params, state = run.params(), run.state()
        with pytest.raises((RuntimeError, ArithmeticError, ValueError), match=r"(?i)non-?finite"):
            run.step(grads[3])
        identical(run.params(), params, f"{opt}, parameters after a refused step")
        identical(run.state(), state, f"{opt}, state after a refused step")
        self.drive(run, grads[4:])
        without = self.drive(self.start(case), grads[:3] + grads[4:])
        identical(run.params(), without.params(), f"{opt}, after a refused step")

    @for_optimizers("stam", "stam_lite", "stac")
    @bad_values
    def test_propagate(self, opt: str, bad: float) -> None:
        """The bad entry is lost, its neighbours and the statistics are not."""
        case, grads = self._bad_case(opt, "propagate", bad)
        self._propagates(self.start(case), case, grads)

    @for_optimizers("stam", "stam_lite", "stac")
    @bad_values
    def test_default_policy(self, opt: str, bad: float) -> None:
        """Without `nonfinite` the documented default holds."""
        case, grads = self._bad_case(opt, DEFAULTS[opt], bad, declared=False)
        if DEFAULTS[opt] == "propagate":
            self._propagates(self.start(case), case, grads)
            return
        run = self.drive(self.start(case), grads)
        without = self.drive(self.start(case), grads[:3] + grads[4:])
        identical(run.params(), without.params(), f"{opt}, default policy")
        identical(run.state(), without.state(), f"{opt}, default policy")

    @for_optimizers("stam", "stam_lite")
    @bad_values
    def test_propagate_in_the_first_step(self, opt: str, bad: float) -> None:
        """Before a tensor has a scale its healthy entries do not move by more than a rate."""
        case, grads = self._bad_case(opt, "propagate", bad)
        self._propagates(self.start(case), case, grads[3:])

    @for_optimizers("stam", "stam_lite")
    def test_overflowing_statistics(self, opt: str) -> None:
        """Finite gradients whose squares overflow float32 poison no statistic."""
        case = plain_case(opt)
        grads = [writable(g) for g in case.grads("float32")]
        grads[3]["w"][...] = np.float32(1e30)
        run = self.start(case)
        for t, g in enumerate(grads, start=1):
            run.step(g)
            _statistics_are_finite(run, 0.72, 0.9, f"{opt}, overflow on step 4, after step {t}")

    @for_optimizers("stam", "stam_lite")
    @pytest.mark.parametrize("scale_free", [False, True], ids=["eps", "scale-free"])
    def test_vanishing_statistics(self, opt: str, scale_free: bool) -> None:
        """Gradients that stop let the statistics fade to 0, through numbers that lose their digits.

        A leaf may see no gradient for thousands of steps; its variance must not become 0/0.
        """
        case = plain_case(opt)
        quick = {"stam": {"b2": 0.9, "tau_decay": 0.9}, "stam_lite": {"moment_decay": 0.9}}
        hparams: dict[str, Any] = {**case.hparams, **quick[opt]}
        if scale_free and opt == "stam":
            self.need("corrected")
            hparams["statistics"] = "corrected"
        elif scale_free:
            hparams["eps"] = 1e-30
        params = {"w": np.ones(4, np.float32), "b": np.ones(3, np.float32)}
        roll = np.random.default_rng(17)
        run = self.start(case, params=params, hparams=hparams)
        for t in range(1, 301):
            size = 3e-20 if t < 4 else 0.0
            run.step({k: np.float32(size) * _normal(roll, v.shape) for k, v in params.items()})
            if t % 10 == 0:
                _statistics_are_finite(run, 0.72, 0.9, f"{opt}, faded, step {t}")

    def _propagates(self, run: Run, case: Case, grads: list[dict[str, Array]]) -> None:
        oracle = Oracle(case.optimizer, case.hparams, case.params("float32"))
        terms = Terms()
        for t, g in enumerate(grads, start=1):
            run.step(g)
            oracle.step(g)
            what = f"{case.optimizer}, bad entry on step 4 propagated, after step {t}"
            close(
                _lost(run.params()),
                _lost(oracle.params()),
                lambda _: free_running("float32", "params"),
                what,
            )
            close(
                _lost(run.state()),
                _lost(oracle.state()),
                lambda key: free_running("float32", slot_of(key)),
                what,
                terms.after({k: np.nan_to_num(v, posinf=0, neginf=0) for k, v in g.items()}),
            )
            if case.optimizer in ("stam", "stam_lite"):
                _statistics_are_finite(run, 0.72, 0.9, what)

    def _bad_case(
        self, opt: str, policy: str, bad: float, *, declared: bool = True
    ) -> tuple[Case, list[dict[str, Array]]]:
        """Return the case under a policy, and its gradients with one bad entry on step 4."""
        if declared:
            self.need(policy)
        case = plain_case(opt)
        policies: dict[str, Any] = {"nonfinite": policy} if declared else {}
        case = Case("bad", opt, {**case.hparams, **policies}, steps=8, seed=9)
        grads = [writable(g) for g in case.grads("float32")]
        grads[3]["w"][1, 2] = bad
        return case, grads


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return rng.standard_normal(shape).astype(np.float32)


def _lost(tree: Tree) -> dict[str, Array]:
    """Make lost entries alike: which of NaN and infinity they are depends on the algebra."""
    return {
        k: np.where(np.isfinite(v), v, np.nan) if v.dtype.kind == "f" else v
        for k, v in tree.items()
    }


def _statistics_are_finite(run: Run, low: float, high: float, what: str) -> None:
    for key, value in run.state().items():
        if slot_of(key) in STATISTICS:
            assert np.isfinite(value).all(), f"{what}: {key} is {value}"
        if slot_of(key) == "beta1":
            # A float32 bound may round outwards by one unit.
            assert low - 1e-6 <= value <= high + 1e-6, f"{what}: {key} is {value}"
