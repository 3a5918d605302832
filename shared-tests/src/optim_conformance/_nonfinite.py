"""Checks on gradients that are not finite, under every policy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from optim_conformance._base import Checks, where, writable
from optim_conformance._compare import Terms, close, identical, slot_of
from optim_conformance.adapter import Array, Run, Tree
from optim_conformance.cases import Case
from optim_conformance.oracle import Oracle
from optim_conformance.rule import OptimizerRule
from optim_conformance.rules import RULES, SLOTS, plain_case
from optim_conformance.tolerances import free_running

BAD = {"nan": np.nan, "inf": np.inf, "minus-inf": -np.inf}

guarded = where(lambda rule: rule.nonfinite, "policy for gradients that are not finite")


def _has_statistics(rule: OptimizerRule) -> bool:
    return any(slot.scalar for slot in rule.slots)


averaging = where(_has_statistics, "statistic")
bad_values = pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())


class NonfiniteChecks(Checks):
    """One bad entry in one leaf, on the fourth of eight steps."""

    @guarded
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

    @guarded
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

    @guarded
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

    @guarded
    @bad_values
    def test_propagate(self, opt: str, bad: float) -> None:
        """The bad entry is lost, its neighbours and the statistics are not."""
        case, grads = self._bad_case(opt, "propagate", bad)
        self._propagates(self.start(case), case, grads)

    @guarded
    @bad_values
    def test_default_policy(self, opt: str, bad: float) -> None:
        """Without `nonfinite` the documented default holds."""
        policy = RULES[opt].policy(self.adapter.framework)
        case, grads = self._bad_case(opt, policy, bad, declared=False)
        if policy == "propagate":
            self._propagates(self.start(case), case, grads)
            return
        run = self.drive(self.start(case), grads)
        without = self.drive(self.start(case), grads[:3] + grads[4:])
        identical(run.params(), without.params(), f"{opt}, default policy")
        identical(run.state(), without.state(), f"{opt}, default policy")

    @guarded
    @bad_values
    def test_propagate_in_the_first_step(self, opt: str, bad: float) -> None:
        """Before a tensor has a scale its healthy entries do not move by more than a rate."""
        case, grads = self._bad_case(opt, "propagate", bad)
        self._propagates(self.start(case), case, grads[3:])

    @averaging
    def test_overflowing_statistics(self, opt: str) -> None:
        """Finite gradients whose squares overflow float32 poison no statistic."""
        case = plain_case(opt)
        grads = [writable(g) for g in case.grads("float32")]
        grads[3]["w"][...] = np.float32(1e30)
        run = self.start(case)
        for t, g in enumerate(grads, start=1):
            run.step(g)
            _statistics_are_finite(run, f"{opt}, overflow on step 4, after step {t}")

    @averaging
    @pytest.mark.parametrize("scale_free", [False, True], ids=["eps", "scale-free"])
    def test_vanishing_statistics(self, opt: str, scale_free: bool) -> None:
        """Gradients that stop let the statistics fade to 0, through numbers that lose their digits.

        A leaf may see no gradient for thousands of steps; its variance must not become 0/0.
        """
        case = plain_case(opt)
        free = (RULES[opt].scale_free or {}) if scale_free else {}
        self.need(*RULES[opt].needs(free))
        hparams = {**case.hparams, **RULES[opt].quick, **free}
        params = {"w": np.ones(4, np.float32), "b": np.ones(3, np.float32)}
        roll = np.random.default_rng(17)
        run = self.start(case, params=params, hparams=hparams)
        for t in range(1, 301):
            size = 3e-20 if t < 4 else 0.0
            run.step({k: np.float32(size) * _normal(roll, v.shape) for k, v in params.items()})
            if t % 10 == 0:
                _statistics_are_finite(run, f"{opt}, faded, step {t}")

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
            _statistics_are_finite(run, what)

    def _bad_case(
        self, opt: str, policy: str, bad: float, *, declared: bool = True
    ) -> tuple[Case, list[dict[str, Array]]]:
        """Return the case under a policy, and its gradients with one bad entry on step 4."""
        if declared:
            self.need(policy)
        case = plain_case(opt)
        policies: dict[str, Any] = {"nonfinite": policy} if declared else {}
        case = replace(case, name="bad", hparams={**case.hparams, **policies})
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


def _statistics_are_finite(run: Run, what: str) -> None:
    for key, value in run.state().items():
        slot = SLOTS.get(slot_of(key))
        if slot is None or not slot.scalar:
            continue
        assert np.isfinite(value).all(), f"{what}: {key} is {value}"
        if slot.limits is not None:
            # A float32 bound may round outwards by one unit.
            low, high = slot.limits
            assert low - 1e-6 <= value <= high + 1e-6, f"{what}: {key} is {value}"
