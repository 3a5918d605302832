"""Checks against the oracle: parameters and state after every step."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from optim_conformance._base import Checks
from optim_conformance._compare import Terms, close, close_to_storage, slot_of
from optim_conformance.adapter import Array, Tree
from optim_conformance.cases import Case
from optim_conformance.golden import golden_cases
from optim_conformance.oracle import Oracle
from optim_conformance.rule import Step
from optim_conformance.rules import plain_case
from optim_conformance.tolerances import free_running

Trace = list[tuple[Tree, Tree]]
"""Parameters and state after each step."""


class TrajectoryChecks(Checks):
    """The run and the oracle take the same steps."""

    _traces: ClassVar[dict[tuple[type, str, str], Trace]] = {}

    def trace(self, case: Case, dtype: str) -> Trace:
        """Return the run's trajectory; both trajectory checks share one run."""
        key = (type(self), str(case), dtype)
        if key not in self._traces:
            run, trace = self.start(case, dtype), Trace()
            for t, g in enumerate(case.grads(dtype), start=1):
                run.step(g, lr=case.lr(t))
                trace.append((run.params(), run.state()))
            self._traces[key] = trace
        return self._traces[key]

    def test_trajectory_params(self, case: Case, dtype: str) -> None:
        """Parameters follow the oracle's after every step."""
        oracle = Oracle(case.optimizer, case.hparams, case.params(dtype))
        for t, (g, (params, _)) in enumerate(
            zip(case.grads(dtype), self.trace(case, dtype), strict=True), start=1
        ):
            oracle.step(g, lr=case.lr(t))
            close(
                params,
                oracle.params(),
                lambda _: free_running(dtype, "params"),
                f"{case}, parameters after step {t}",
            )

    def test_trajectory_state(self, case: Case, dtype: str) -> None:
        """Every state slot follows the oracle's after every step, and there is no other."""
        oracle, terms = Oracle(case.optimizer, case.hparams, case.params(dtype)), Terms()
        for t, (g, (_, state)) in enumerate(
            zip(case.grads(dtype), self.trace(case, dtype), strict=True), start=1
        ):
            oracle.step(g, lr=case.lr(t))
            close(
                state,
                oracle.state(),
                lambda key: free_running(dtype, slot_of(key)),
                f"{case}, state after step {t}",
                terms.after(g),
            )

    def test_complex(self, case: Case, complex_dtype: str) -> None:
        """Complex leaves: moduli in the statistics of STAM, pairs of reals in STAC."""
        run, terms = self.start(case, complex_dtype), Terms()
        oracle = Oracle(case.optimizer, case.hparams, case.params(complex_dtype))
        for t, g in enumerate(case.grads(complex_dtype), start=1):
            run.step(g)
            oracle.step(g)
            what = f"{case}, step {t}"
            close(run.params(), oracle.params(), lambda _: free_running("float32", "params"), what)
            close(
                run.state(),
                oracle.state(),
                lambda key: free_running("float32", slot_of(key)),
                what,
                terms.after(g),
            )

    def test_low_precision_step(self, case: Case, low_dtype: str) -> None:
        """Each step from the run's own 16-bit state is the oracle's step, rounded to storage.

        Judging one step at a time keeps the rounding of earlier steps out of the comparison, so
        that a statistic which a 16-bit accumulator would stall is seen at once.
        """
        run = self.start(case, low_dtype)
        oracle = Oracle(case.optimizer, case.hparams, case.params(low_dtype))
        params, state = case.params(low_dtype), oracle.state()
        for t, g in enumerate(case.grads(low_dtype), start=1):
            before: Tree = {**params, **state}
            oracle.load(params, state)
            oracle.count = t - 1
            oracle.step(g)
            run.step(g)
            params, state = run.params(), run.state()
            close_to_storage(
                {**params, **state},
                {**oracle.params(), **oracle.state()},
                before,
                step_size=float(case.hparams["learning_rate"]),
                what=f"{case} in {low_dtype}, step {t}",
            )

    def test_first_step(self, opt: str) -> None:
        """The first step has a closed form in which no momentum and no statistic appears."""
        case = plain_case(opt)
        run = self.start(case)
        params, g = case.params("float32"), case.grads("float32")[0]
        run.step(g)
        rules = Oracle(opt, case.hparams, params).rules
        lr = case.hparams["learning_rate"]
        expected = {
            leaf: _first_step(rule, params[leaf], g[leaf], lr * rule.share)
            for leaf, rule in rules.items()
        }
        close(run.params(), expected, lambda _: free_running("float32", "params"), f"{opt}, step 1")

    def test_updates_from_zero(self, opt: str) -> None:
        """A parameter that begins at zero is the sum of its updates, and shows all their digits."""
        case = plain_case(opt)
        row = "update" if "digits" in self.adapter.capabilities else "cancelled update"
        zeros = {leaf: np.zeros_like(p) for leaf, p in case.params("float32").items()}
        run, oracle = self.start(case, params=zeros), Oracle(opt, case.hparams, zeros)
        for t, g in enumerate(case.grads("float32"), start=1):
            run.step(g)
            oracle.step(g)
            what = f"{opt} from zero, step {t}"
            close(run.params(), oracle.params(), lambda _: free_running("float32", row), what)

    def test_golden_trajectories(self, opt: str) -> None:
        """The recorded trajectories, which need no oracle at test time, are reproduced."""
        for golden in golden_cases(opt):
            if self.lacking(golden.requires):
                continue
            run = self.adapter.start(opt, golden.hparams, golden.params("float32"), dtype="float32")
            for t, (g, params, state) in enumerate(golden.steps(), start=1):
                run.step({k: v.astype(np.float32) for k, v in g.items()})
                what = f"golden {golden.name}, step {t}"
                close(run.params(), params, lambda _: free_running("float32", "params"), what)
                close(run.state(), state, lambda key: free_running("float32", slot_of(key)), what)


def _first_step(rule: Step, p: Array, g: Array, lr: float) -> Array:
    """Return p after step 1: every average is then its own first term."""
    p, g = p.astype(np.float64), g.astype(np.float64)
    return p * (1 - lr * rule.weight_decay) - lr * rule.first_direction(g)
