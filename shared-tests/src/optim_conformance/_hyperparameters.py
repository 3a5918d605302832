"""Checks on learning rate, decay and defaults, and the exact limits."""

from __future__ import annotations

import numpy as np

from optim_conformance._base import Checks, for_optimizers
from optim_conformance._compare import close, identical, slot_of
from optim_conformance.cases import SHAPES, Case, plain_case
from optim_conformance.oracle import Oracle
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
        for leaf, start in p.items():
            lr = case.hparams["learning_rate"]
            if opt == "stac" and case.hparams["roles"][leaf] == "sign":
                lr *= case.hparams["sign_lr_scale"]
            moved = decayed.params()[leaf].astype(np.float64) - plain.params()[leaf]
            np.testing.assert_allclose(
                moved,
                -lr * case.hparams["weight_decay"] * start.astype(np.float64),
                rtol=0,
                atol=3e-7,  # three float32 roundings of parameters of at most 1
                err_msg=f"{opt}: the decay of {leaf} is not lr * wd * p",
            )

    @for_optimizers("stam", "stac")
    def test_limit_adamw(self, opt: str) -> None:
        """Without adaptation STAM is AdamW(b1); with one section STAC is AdamW."""
        limits: dict[str, dict[str, object]] = {
            "stam": {"adapt_strength": 0.0},
            "stac": {"roles": dict.fromkeys(SHAPES, "adamw")},
        }
        self._same_as(opt, {**limits[opt], "weight_decay": 0.1, "learning_rate": 1e-2}, "adamw", {})

    @for_optimizers("stac")
    def test_limit_lion(self, opt: str) -> None:
        """All-sign STAC is Lion with both betas equal to the sign momentum."""
        roles = {"roles": dict.fromkeys(SHAPES, "sign"), "sign_momentum": 0.95}
        self._same_as(
            opt,
            {**roles, "weight_decay": 0.1, "learning_rate": 1e-3, "sign_lr_scale": 1.0},
            "lion",
            {"b1": 0.95, "b2": 0.95},
        )

    def _same_as(
        self, opt: str, hparams: dict[str, object], other: str, others: dict[str, object]
    ) -> None:
        case = Case("limit", opt, hparams, steps=60, seed=21)
        both = {k: hparams[k] for k in ("weight_decay", "learning_rate")}
        oracle = Oracle(other, {**both, **others}, case.params("float32"))
        run = self.start(case)
        for t, g in enumerate(case.grads("float32"), start=1):
            run.step(g)
            oracle.step(g)
            close(
                run.params(),
                oracle.params(),
                lambda _: free_running("float32", "limit"),
                f"{opt} against {other}, step {t}",
            )
