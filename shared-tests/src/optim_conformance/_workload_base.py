"""What a benchmark shows to the suite of workloads: arrays, and runs that train on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import pytest

from optim_conformance.adapter import Array, Tree

SPLITS = ("train", "val", "test")
Batches = tuple[Array, Array]
# Uneven on purpose: a boundary may fall anywhere.
CUTS = (1, 6, 5)
STEPS = sum(CUTS)


@dataclass(frozen=True)
class Pair:
    """One workload under one optimizer in one framework.

    Attributes:
        workload: Its name.
        framework: Where it is trained.
        optimizer: What trains it.
        learning_rate: The peak of its schedule.
        steps: The horizon, long enough to learn something.
        reach: What share of the first validation loss must be left at most after `steps`.
    """

    workload: str
    framework: str
    optimizer: str
    learning_rate: float
    steps: int
    reach: float

    def __str__(self) -> str:
        """Return the test's id."""
        return f"{self.workload}-{self.framework}-{self.optimizer}"


class Training(Protocol):
    """Live parameters and optimizer state of one run."""

    def advance(self, inputs: Array, targets: Array, rates: Sequence[float]) -> Array:
        """Take one step per rate; return the loss of each batch before its step."""
        ...

    def evaluate(self, inputs: Array, targets: Array) -> float:
        """Return the mean loss."""
        ...

    def params(self) -> Tree:
        """Return the parameters under the names of `WorkloadAdapter.initial`, in host memory."""
        ...

    def save(self) -> bytes:
        """Serialize all that the next step depends on, beside the batches."""
        ...

    def restore(self, blob: bytes) -> None:
        """Continue from `blob`."""
        ...


class WorkloadAdapter(Protocol):
    """The workloads of one benchmark.

    Attributes:
        name: For the report.
        plain: Name of the optimizer that is p - rate * gradient and nothing else.
        rates: Workload to a learning rate at which `plain` moves it well, without chaos.
        frameworks: Where every workload can be trained; the first is compared with the others.
        steady: Workloads whose batches are all one batch, because nothing in them is random.
        unsplit: Workloads with one evaluation set for all splits, because they have no examples.
        pairs: What is trained to its end.
        schedules: Names of the learning-rate schedules.
    """

    name: str
    plain: str
    rates: Mapping[str, float]
    frameworks: Sequence[str]
    steady: frozenset[str]
    unsplit: frozenset[str]
    pairs: Sequence[Pair]
    schedules: Sequence[str]

    def initial(self, workload: str, seed: int) -> Tree:
        """Return the initial parameters, float32."""
        ...

    def batches(self, workload: str, seed: int, sizes: Sequence[int]) -> Iterator[Batches]:
        """Yield inputs and targets for runs of steps, axes (step, example, ...)."""
        ...

    def evaluation(self, workload: str, seed: int, split: str) -> Batches:
        """Return what a split is judged on after the first step."""
        ...

    def multipliers(self, schedule: str, steps: int) -> Sequence[float]:
        """Return what each step's learning rate is as a share of the peak."""
        ...

    def start(self, pair: Pair, seed: int) -> Training:
        """Start a run from `initial`."""
        ...


# Finished runs by suite class: several checks look at the same one.
_RUNS: WeakKeyDictionary[type, dict[Any, Any]] = WeakKeyDictionary()


class Workloads:
    """What the groups of checks share: how workloads are named, and how a run is driven."""

    adapter: ClassVar[WorkloadAdapter]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Give the arguments of the checks the values of this adapter."""
        workloads = list(self.adapter.rates)
        offered: dict[str, Sequence[Any]] = {
            "workload": workloads,
            "sampled": [w for w in workloads if w not in self.adapter.steady],
            "divided": [w for w in workloads if w not in self.adapter.unsplit],
            "pair": self.adapter.pairs,
            "other": self.adapter.frameworks[1:],
            "schedule": self.adapter.schedules,
        }
        # In the order of the table: that of a set differs between the workers of one run.
        for name in (name for name in offered if name in metafunc.fixturenames):
            metafunc.parametrize(name, offered[name], ids=str)

    def stream(self, workload: str, seed: int, sizes: Sequence[int]) -> Batches:
        """Return all batches of a stream in one piece."""
        pieces = list(self.adapter.batches(workload, seed, sizes))
        assert [len(x) for x, _ in pieces] == list(sizes), "batches: other sizes than asked for"
        return (
            np.concatenate([x for x, _ in pieces]),
            np.concatenate([y for _, y in pieces]),
        )

    def plain_pair(self, workload: str, framework: str) -> Pair:
        """Return a workload under the plain optimizer."""
        rate = self.adapter.rates[workload]
        return Pair(workload, framework, self.adapter.plain, rate, STEPS, 1.0)

    def train(self, pair: Pair, sizes: Sequence[int], seed: int = 0) -> tuple[Array, Training]:
        """Take some steps at the pair's learning rate; return the losses and the run."""
        run = self.adapter.start(pair, seed)
        batches = self.adapter.batches(pair.workload, seed, sizes)
        losses = [run.advance(x, y, [pair.learning_rate] * len(x)) for x, y in batches]
        return np.concatenate(losses), run

    def whole(self, pair: Pair) -> tuple[Array, Tree]:
        """Return the losses and the final parameters of a run over `CUTS`."""
        memo = _RUNS.setdefault(type(self), {})
        if pair not in memo:
            losses, run = self.train(pair, CUTS)
            memo[pair] = losses, run.params()
        return memo[pair]


def equal(first: Sequence[Array], second: Sequence[Array]) -> bool:
    """Return whether all arrays agree bit for bit."""
    return all(
        a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        for a, b in zip(first, second, strict=True)
    )


def named(arrays: Sequence[Array]) -> dict[str, Array]:
    """Return arrays as a tree, for a comparison that says which one is off."""
    return dict(zip(("inputs", "targets"), arrays, strict=True))
