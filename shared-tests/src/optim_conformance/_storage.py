"""Checks on first moments that are stored narrower than they are computed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from optim_conformance._base import Checks, where
from optim_conformance._compare import close_to_storage
from optim_conformance.adapter import Tree, numpy_dtype
from optim_conformance.cases import Case
from optim_conformance.oracle import Oracle
from optim_conformance.rules import RULES, plain_case


class StorageChecks(Checks):
    """`mu_dtype`: computed in float32, rounded once, and nothing else is narrowed."""

    @where(lambda rule: rule.narrow is not None, "moment to store narrower")
    @pytest.mark.parametrize("narrow", ["bfloat16", "float16"])
    def test_moment_storage(self, opt: str, narrow: str) -> None:
        """Float32 parameters with a 16-bit moment: each step is exact up to its rounding."""
        self.need("mu_dtype")
        case = self._narrow_case(opt, narrow)
        run, oracle = self.start(case), Oracle(opt, case.hparams, case.params("float32"))
        params: Tree = case.params("float32")
        state: Tree = oracle.state()
        for t, g in enumerate(case.grads("float32"), start=1):
            before: Tree = {**params, **state}
            oracle.load(params, state)
            oracle.count = t - 1
            oracle.step(g)
            run.step(g)
            params, state = run.params(), run.state()
            for key, value in state.items():
                if key.startswith("mu/"):
                    assert value.dtype == numpy_dtype(narrow), f"{key} is stored as {value.dtype}"
            close_to_storage(
                {**params, **state},
                {**oracle.params(), **oracle.state()},
                before,
                step_size=0.0,
                what=f"{opt} with mu in {narrow}, step {t}",
            )

    @where(lambda rule: rule.signs, "step by the sign of a moment")
    def test_sign_before_rounding(self, opt: str) -> None:
        """The sign is that of the float32 momentum, and a stored momentum saturates.

        A gradient of 1e-7 rounds to a momentum of 0 in float16, one of 1e6 is beyond its range.
        """
        self.need("mu_dtype")
        case = self._narrow_case(opt, "float16")
        oracle = Oracle(opt, case.hparams, case.params("float32"))
        rates = {k: case.hparams["learning_rate"] * r.share for k, r in oracle.rules.items()}
        for size in (1e-7, 1e6):
            run, start = self.start(case), case.params("float32")
            signs = {k: np.sign(v) for k, v in case.grads("float32")[0].items()}
            for t in range(1, 4):
                run.step({k: np.float32(size) * v for k, v in signs.items()})
                for leaf, sign in signs.items():
                    np.testing.assert_allclose(
                        run.params()[leaf],
                        start[leaf].astype(np.float64) - t * rates[leaf] * sign,
                        atol=1e-6,
                        err_msg=f"{leaf} after step {t} with gradients of {size:g}",
                    )
                    mu = run.state()[f"mu/{leaf}"]
                    assert np.isfinite(mu).all(), f"mu/{leaf} is not finite at gradients {size:g}"

    def _narrow_case(self, opt: str, narrow: str) -> Case:
        case = plain_case(opt)
        hparams: dict[str, Any] = {**case.hparams, "mu_dtype": narrow}
        hparams |= RULES[opt].narrow or {}
        return replace(case, name="narrow", hparams=hparams)
