"""Checks on training a workload: between frameworks, and of each run by itself."""

from __future__ import annotations

import numpy as np
import pytest

from optim_conformance._compare import identical
from optim_conformance._workload_base import CUTS, STEPS, Pair, Workloads, equal
from optim_conformance.adapter import Array


class TrainingChecks(Workloads):
    """Every framework trains the same problem; every pair does what a run promises."""

    def test_same_numbers_before_the_first_step(self, workload: str, other: str) -> None:
        """Both frameworks hold the initial parameters bit for bit, and judge them alike."""
        given = self.adapter.initial(workload, 0)
        judged = self.adapter.evaluation(workload, 0, "val")
        losses = []
        for framework in (self.adapter.frameworks[0], other):
            run = self.adapter.start(self.plain_pair(workload, framework), 0)
            identical(run.params(), given, f"{workload} in {framework}, before the first step")
            losses.append(run.evaluate(*judged))
        # A float32 mean over up to 10,000 examples, summed in another order.
        assert losses[1] == pytest.approx(losses[0], rel=5e-6), (
            f"{workload}: loss before the first step in {self.adapter.frameworks[0]} and {other}"
        )

    def test_same_path_under_plain_descent(self, workload: str, other: str) -> None:
        """Losses and parameters of a plain gradient descent agree between frameworks."""
        given = self.adapter.initial(workload, 0)
        ends = [
            self.whole(self.plain_pair(workload, framework))
            for framework in (self.adapter.frameworks[0], other)
        ]
        np.testing.assert_allclose(ends[1][0], ends[0][0], rtol=2e-4, err_msg=workload)
        for key, start in given.items():
            here, there = ends[0][1][key], ends[1][1][key]
            moved = np.abs(here - start).max()
            assert moved > 0, f"{workload}: {key} never moves"
            # Rounding alone separates them: a thousandth of the way that the parameter has gone.
            off = np.abs(here - there).max()
            assert off < 1e-3 * moved, f"{workload}: {key} is {off:.3g} off after {moved:.3g}"

    def test_same_bits_twice(self, pair: Pair) -> None:
        """A run is a function of its seed, judged in between or not, cut differently or not."""
        losses, params = self.whole(pair)
        run = self.adapter.start(pair, 0)
        judged = self.adapter.evaluation(pair.workload, 0, "val")
        again: list[Array] = []
        for x, y in self.adapter.batches(pair.workload, 0, CUTS[::-1]):
            again.append(run.advance(x, y, [pair.learning_rate] * len(x)))
            run.evaluate(*judged)
        identical({"losses": np.concatenate(again)}, {"losses": losses}, f"{pair}, again")
        identical(run.params(), params, f"{pair}, again")

    def test_another_seed_is_another_run(self, pair: Pair) -> None:
        """Another seed gives other losses from the first step on."""
        losses, _ = self.train(pair, [1], seed=1)
        assert losses[0] != self.whole(pair)[0][0], f"{pair}: seeds 0 and 1 have the same loss"

    def test_losses_are_those_before_the_step(self, pair: Pair) -> None:
        """The first loss is the loss of the first batch under the initial parameters."""
        inputs, targets = next(iter(self.adapter.batches(pair.workload, 0, [1])))
        expected = self.adapter.start(pair, 0).evaluate(inputs[0], targets[0])
        assert self.whole(pair)[0][0] == pytest.approx(expected, rel=5e-6), f"{pair}: first loss"

    def test_judging_is_a_read(self, pair: Pair) -> None:
        """Judging moves no parameter, and judging again gives the same number."""
        _, run = self.train(pair, [2])
        before = run.params()
        judged = self.adapter.evaluation(pair.workload, 0, "val")
        first, second = run.evaluate(*judged), run.evaluate(*judged)
        assert first == second, f"{pair}: judged {first}, then {second}"
        identical(run.params(), before, f"{pair}, after judging")

    def test_every_step_has_its_learning_rate(self, pair: Pair) -> None:
        """At rate 0 nothing moves, in the middle of a chunk too."""
        inputs, targets = next(iter(self.adapter.batches(pair.workload, 0, [3])))
        rate = pair.learning_rate
        run, one = (self.adapter.start(pair, 0) for _ in range(2))
        run.advance(inputs, targets, [rate, 0.0, 0.0])
        one.advance(inputs[:1], targets[:1], [rate])
        identical(run.params(), one.params(), f"{pair}, two steps at rate 0")
        half = self.adapter.start(pair, 0)
        half.advance(inputs[:1], targets[:1], [rate / 2])
        assert not equal(list(half.params().values()), list(one.params().values())), (
            f"{pair}: half the learning rate takes the same step"
        )

    def test_resume(self, pair: Pair) -> None:
        """A run saved after any chunk continues in a new one as if nothing had happened."""
        losses, params = self.whole(pair)
        for split in range(1, len(CUTS)):
            served = list(self.adapter.batches(pair.workload, 0, CUTS))
            _, first = self.train(pair, CUTS[:split])
            run = self.adapter.start(pair, 1)
            run.restore(first.save())
            rest = [run.advance(x, y, [pair.learning_rate] * len(x)) for x, y in served[split:]]
            what = f"{pair}, resumed after step {sum(CUTS[:split])}"
            tail = losses[sum(CUTS[:split]) :]
            identical({"losses": np.concatenate(rest)}, {"losses": tail}, what)
            identical(run.params(), params, what)

    def test_learns(self, pair: Pair) -> None:
        """The validation loss falls to the stated share within the stated steps."""
        judged = self.adapter.evaluation(pair.workload, 0, "val")
        run = self.adapter.start(pair, 0)
        first = run.evaluate(*judged)
        pieces = [STEPS] * (pair.steps // STEPS) + [pair.steps % STEPS] * (pair.steps % STEPS > 0)
        for x, y in self.adapter.batches(pair.workload, 0, pieces):
            run.advance(x, y, [pair.learning_rate] * len(x))
        last = run.evaluate(*judged)
        assert last <= pair.reach * first, (
            f"{pair}: validation loss {last:.4g} after {pair.steps} steps from {first:.4g}; "
            f"the budget is {pair.reach * first:.4g}"
        )
