"""Checks on statistics that are taken over a sample of the entries."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from optim_conformance._base import Checks, where
from optim_conformance._compare import close, slot_of
from optim_conformance.rule import OptimizerRule
from optim_conformance.rules import plain_case
from optim_conformance.tolerances import free_running

ENTRIES = 16


def _samples(rule: OptimizerRule) -> bool:
    return "stat_sample" in rule.ranges


sampled = where(_samples, "statistics of a sample")


class SamplingChecks(Checks):
    """`stat_sample=n`: at most n entries per tensor, strided, always the same."""

    @sampled
    def test_sample_of_everything(self, opt: str) -> None:
        """A sample no smaller than the tensors is the full statistic."""
        self.need("stat_sample")
        case = plain_case(opt)
        full = self.drive(self.start(case), case.grads("float32"))
        run = self.start(case, hparams={**case.hparams, "stat_sample": 36})
        self.drive(run, case.grads("float32"))
        close(
            run.state(),
            full.state(),
            lambda key: free_running("float32", slot_of(key)),
            f"{opt}, a sample of all entries",
        )

    @sampled
    @pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 15])
    def test_sample_is_strided(self, opt: str, n: int) -> None:
        """The sample has at most n entries, evenly spaced, the same ones on every step.

        Gradients of distinct powers of two make a mean of moduli say which entries it is over.
        """
        self.need("stat_sample")
        params = {"w": np.zeros(ENTRIES, np.float32)}
        hparams = {"stat_sample": n, "weight_decay": 0.0}
        taken: list[tuple[int, ...]] = []
        for sign in (1.0, -1.0):
            run = self.start(plain_case(opt), params=params, hparams=hparams)
            run.step({"w": (sign * 2.0 ** np.arange(ENTRIES)).astype(np.float32)})
            state = run.state()
            mean = float(state["tau/w"]) / (1 - 0.99)
            squares = float(state["s2/w"]) / (1 - 0.999)
            found = [
                places
                for places in _strided(n)
                if np.isclose(mean, np.mean(2.0 ** np.array(places)), rtol=1e-5)
                and np.isclose(squares, np.mean(4.0 ** np.array(places)), rtol=1e-5)
            ]
            assert found, f"stat_sample={n}: tau/w and s2/w fit no even sample of up to {n} entries"
            taken.append(found[0])
        assert taken[0] == taken[1], f"stat_sample={n}: the sample moved from {taken[0]}"


def _strided(n: int) -> Iterator[tuple[int, ...]]:
    """Yield every evenly spaced sample of 1 to n of the entries."""
    for start in range(ENTRIES):
        yield (start,)
        for stride in range(1, ENTRIES):
            whole = tuple(range(start, ENTRIES, stride))
            yield from (whole[:k] for k in range(2, min(n, len(whole)) + 1))
