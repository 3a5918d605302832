"""Checks against the oracle: parameters and state after every step."""

from __future__ import annotations

from optim_conformance._base import Checks
from optim_conformance._compare import close, slot_of
from optim_conformance.adapter import Run, Tree
from optim_conformance.cases import Case
from optim_conformance.oracle import Oracle
from optim_conformance.tolerances import free_running


class TrajectoryChecks(Checks):
    """The run and the oracle take the same steps."""

    def test_trajectory_params(self, case: Case, dtype: str) -> None:
        """Parameters follow the oracle's after every step."""
        run, oracle = self._both(case, dtype)
        for t, g in enumerate(case.grads(dtype), start=1):
            run.step(g, lr=case.lr(t))
            oracle.step(g, lr=case.lr(t))
            close(
                run.params(),
                oracle.params(),
                lambda key, _: free_running(dtype, "params"),
                f"{case}, parameters after step {t}",
            )

    def test_trajectory_state(self, case: Case, dtype: str) -> None:
        """Every state slot follows the oracle's after every step."""
        run, oracle = self._both(case, dtype)
        for t, g in enumerate(case.grads(dtype), start=1):
            run.step(g, lr=case.lr(t))
            oracle.step(g, lr=case.lr(t))
            close(
                run.state(),
                expected_state(oracle, case),
                lambda key, _: free_running(dtype, slot_of(key)),
                f"{case}, state after step {t}",
            )

    def _both(self, case: Case, dtype: str) -> tuple[Run, Oracle]:
        params = case.params(dtype)
        return self.start(case, dtype), Oracle(case.optimizer, case.hparams, params)


def expected_state(oracle: Oracle, case: Case) -> Tree:
    """Return the oracle's state; a STAC without an AdamW section counts nothing."""
    state = oracle.state()
    if case.optimizer == "stac" and "adamw" not in set(case.hparams["roles"].values()):
        del state["count"]
    return state
