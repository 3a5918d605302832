"""Checks that the optimizer optimizes: three small problems, each with a budget of steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from optim_conformance._base import Checks
from optim_conformance.adapter import Array, Tree
from optim_conformance.rules import RULES

Loss = Callable[[dict[str, Array]], tuple[float, dict[str, Array]]]
STEPS = 300


@dataclass(frozen=True)
class Problem:
    """A loss with its gradient, where to start, and what 300 steps must reach.

    Attributes:
        name: For the report.
        loss: Parameters to loss and gradients, in float64.
        start: Initial parameters.
        reach: Share of the initial loss that may remain.
    """

    name: str
    loss: Loss
    start: dict[str, Array]
    reach: float


def _quadratic(p: dict[str, Array]) -> tuple[float, dict[str, Array]]:
    """An ill-conditioned bowl around 0.5: curvatures from 1 to 100."""
    curvature = {"w": np.geomspace(1, 100, 12).reshape(4, 3), "b": np.ones(3)}
    off = {k: p[k] - 0.5 for k in curvature}
    grads = {k: curvature[k] * off[k] for k in off}
    return float(sum((0.5 * curvature[k] * off[k] ** 2).sum() for k in off)), grads


def _regression(p: dict[str, Array]) -> tuple[float, dict[str, Array]]:
    """Least squares through a matrix and a bias, with a solution that fits exactly."""
    rng = np.random.default_rng(41)
    x, truth = rng.standard_normal((20, 4)), rng.standard_normal((4, 3))
    error = x @ p["w"] + p["b"] - (x @ truth + 0.3)
    grads = {"w": x.T @ error / 20, "b": error.mean(0)}
    return float(0.5 * (error**2).sum(1).mean()), grads


def _valley(p: dict[str, Array]) -> tuple[float, dict[str, Array]]:
    """Rosenbrock's curved valley, one per entry pair, with the floor 10 times as steep as wide."""
    x, y = p["w"], p["b"]
    bend = y - x**2
    grads = {"w": -2 * (1 - x) - 40 * x * bend, "b": 20 * bend}
    return float(((1 - x) ** 2 + 10 * bend**2).sum()), grads


PROBLEMS = (
    Problem("quadratic", _quadratic, {"w": np.full((4, 3), -0.5), "b": np.full(3, 1.5)}, 1e-4),
    Problem("regression", _regression, {"w": np.zeros((4, 3)), "b": np.zeros(3)}, 1e-5),
    Problem("valley", _valley, {"w": np.full(3, -0.5), "b": np.full(3, 0.75)}, 1e-2),
)


def cosine(t: int, peak: float) -> float:
    """Return the learning rate of step `t`: from the peak down to 0 at the end."""
    return peak * 0.5 * (1 + np.cos(np.pi * t / STEPS))


class LearningChecks(Checks):
    """Closed loop: gradients are taken where the optimizer has gone."""

    @pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)
    def test_converges(self, opt: str, problem: Problem) -> None:
        """After 300 steps the loss is below the stated share of the initial loss."""
        self.need("lr")
        rule = RULES[opt]
        peak, needed = rule.peak, {**rule.for_leaves(problem.start), **rule.plain}
        hparams = {"learning_rate": peak, "weight_decay": 0.0, **needed}
        start = {k: v.astype(np.float32) for k, v in problem.start.items()}
        run = self.adapter.start(opt, hparams, start, dtype="float32")
        first, _ = problem.loss(problem.start)
        for t in range(STEPS):
            _, grads = problem.loss(_wide(run.params()))
            run.step({k: g.astype(np.float32) for k, g in grads.items()}, lr=cosine(t, peak))
        last, _ = problem.loss(_wide(run.params()))
        assert last <= problem.reach * first, (
            f"{opt} on {problem.name}: loss {last:.3g} after {STEPS} steps from {first:.3g}; "
            f"the budget is {problem.reach * first:.3g}"
        )


def _wide(tree: Tree) -> dict[str, Array]:
    return {k: v.astype(np.float64) for k, v in tree.items()}
