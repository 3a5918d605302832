"""Checks on learning rate, decay and defaults, and the exact limits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from optim_conformance._base import Checks, where
from optim_conformance._compare import close, identical, slot_of
from optim_conformance.cases import Case
from optim_conformance.oracle import Oracle
from optim_conformance.rule import Limit
from optim_conformance.rules import RULES, plain_case
from optim_conformance.tolerances import free_running


class HyperparameterChecks(Checks):
    """What each hyperparameter may touch, and what the limits are."""

    def test_constant_schedule(self, opt: str) -> None:
        """Handing the constant learning rate to every step changes nothing."""
        self.need("lr")
        case = plain_case(opt)
        constant = self.drive(self.start(case), case.grads("float32"))
        run = self.start(case)
        for g in case.grads("float32"):
            run.step(g, lr=case.hparams["learning_rate"])
        close(
            run.params(),
            constant.params(),
            lambda _: free_running("float32", "params"),
            f"{opt}, the constant learning rate handed to each step",
        )
        close(
            run.state(),
            constant.state(),
            lambda key: free_running("float32", slot_of(key)),
            f"{opt}, the constant learning rate handed to each step",
        )

    def test_zero_learning_rate(self, opt: str) -> None:
        """A step at learning rate 0 leaves every bit of the parameters and advances the state."""
        self.need("lr")
        case = plain_case(opt)
        run, oracle = self.start(case), Oracle(opt, case.hparams, case.params("float32"))
        for g in case.grads("float32"):
            run.step(g, lr=0.0)
            oracle.step(g, lr=0.0)
        identical(run.params(), case.params("float32"), f"{opt}, learning rate 0")
        close(
            run.state(),
            oracle.state(),
            lambda key: free_running("float32", slot_of(key)),
            f"{opt}, learning rate 0",
        )

    def test_weight_decay_is_decoupled(self, opt: str) -> None:
        """Decay moves parameters by lr * wd * p and touches no moment and no statistic."""
        case = plain_case(opt)
        none = {**case.hparams, "weight_decay": 0.0}
        with_decay = self.drive(self.start(case), case.grads("float32"))
        without = self.drive(self.start(case, hparams=none), case.grads("float32"))
        close(
            with_decay.state(),
            without.state(),
            lambda key: free_running("float32", slot_of(key)),
            f"{opt}, state with and without decay",
        )
        p, g = case.params("float32"), case.grads("float32")[0]
        decayed, plain = self.start(case), self.start(case, hparams=none)
        decayed.step(g)
        plain.step(g)
        rules = Oracle(opt, case.hparams, p).rules
        for leaf, start in p.items():
            lr = case.hparams["learning_rate"] * rules[leaf].share
            moved = decayed.params()[leaf].astype(np.float64) - plain.params()[leaf]
            np.testing.assert_allclose(
                moved,
                -lr * case.hparams["weight_decay"] * start.astype(np.float64),
                rtol=0,
                atol=3e-7,  # three float32 roundings of parameters of at most 1
                err_msg=f"{opt}: the decay of {leaf} is not lr * wd * p",
            )

    @where(lambda rule: rule.limits, "limit")
    def test_limits(self, opt: str) -> None:
        """Under certain hyperparameters the steps are those of another rule."""
        for limit in RULES[opt].limits:
            self._same_as(opt, limit)

    def _same_as(self, opt: str, limit: Limit) -> None:
        hparams = {"weight_decay": 0.1, "learning_rate": 1e-2, **limit.hparams}
        case = Case("limit", hparams, steps=60, seed=21, optimizer=opt)
        run, oracle = self.start(case), Oracle(opt, hparams, case.params("float32"))
        other = replace(limit.other, weight_decay=hparams["weight_decay"])
        oracle.take(dict.fromkeys(oracle.rules, other))
        for t, g in enumerate(case.grads("float32"), start=1):
            run.step(g)
            oracle.step(g)
            close(
                run.params(),
                oracle.params(),
                lambda _: free_running("float32", "limit"),
                f"{opt} against {type(other).__name__}, step {t}",
            )
