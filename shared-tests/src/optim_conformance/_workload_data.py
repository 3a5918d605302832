"""Checks on a workload's arrays, which need no framework."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optim_conformance._compare import identical, same_names
from optim_conformance._workload_base import CUTS, SPLITS, STEPS, Batches, Workloads, equal, named
from optim_conformance.adapter import Array


class DataChecks(Workloads):
    """The numbers of a workload are a function of the seed, and of nothing else."""

    def test_initial_parameters(self, workload: str) -> None:
        """Float32, finite, the same for the same seed, others for another; handed out as copies."""
        given = self.adapter.initial(workload, 3)
        first = {key: value.copy() for key, value in given.items()}
        scribble(list(given.values()))
        again = self.adapter.initial(workload, 3)
        for key, value in first.items():
            assert value.dtype == np.float32, f"{workload}: {key} is {value.dtype}, not float32"
            assert np.isfinite(value).all(), f"{workload}: {key} is not finite"
        identical(again, first, f"{workload}, initial parameters of one seed")
        other = self.adapter.initial(workload, 4)
        same_names(other, first, f"{workload}, another seed")
        assert not equal(list(first.values()), list(other.values())), (
            f"{workload}: seeds 3 and 4 start at the same parameters"
        )

    def test_batches_are_a_function_of_the_seed(self, workload: str) -> None:
        """The same seed gives the same stream, however it is cut and however long it is."""
        whole = self.stream(workload, 1, [STEPS])
        for sizes in (CUTS, [STEPS], [1] * STEPS, [STEPS, 7]):
            cut = [part[:STEPS] for part in self.stream(workload, 1, sizes)]
            identical(named(cut), named(whole), f"{workload}, batches cut into {list(sizes)}")

    def test_batches_differ(self, sampled: str) -> None:
        """No step sees the batch of the step before, and another seed serves other batches."""
        first, other = (self.stream(sampled, seed, [STEPS]) for seed in (1, 2))
        assert not equal(first, other), f"{sampled}: seeds 1 and 2 serve the same batches"
        inputs, _ = first
        for t in range(1, STEPS):
            assert not np.array_equal(inputs[t - 1], inputs[t]), (
                f"{sampled}: steps {t - 1} and {t} see the same batch"
            )

    def test_evaluation_sets(self, workload: str) -> None:
        """Finite, as many targets as inputs, and the same when asked again."""
        for split in SPLITS:
            inputs, targets = self.adapter.evaluation(workload, 0, split)
            what = f"{workload}, {split}"
            assert len(inputs) == len(targets), f"{what}: {len(inputs)} inputs, {len(targets)}"
            assert np.isfinite(inputs).all(), f"{what}: inputs are not finite"
            assert np.isfinite(targets).all(), f"{what}: targets are not finite"
            kept = named((inputs.copy(), targets.copy()))
            scribble((inputs, targets))
            again = self.adapter.evaluation(workload, 0, split)
            identical(named(again), kept, f"{what}, asked again")

    def test_splits_differ(self, divided: str) -> None:
        """No split is judged on the examples of another."""
        sets = {split: self.adapter.evaluation(divided, 0, split)[0] for split in SPLITS}
        for a, b in (("train", "val"), ("train", "test"), ("val", "test")):
            assert not np.array_equal(sets[a], sets[b]), f"{divided}: {a} and {b} are one"

    def test_judging_draws_nothing_from_the_stream(self, workload: str) -> None:
        """Batches asked for with evaluations between them are those without."""
        served = self.adapter.batches(workload, 1, CUTS)
        pieces: list[Batches] = []
        for piece in served:
            pieces.append(piece)
            for split in SPLITS:
                self.adapter.evaluation(workload, 1, split)
        both = [np.concatenate(parts) for parts in zip(*pieces, strict=True)]
        identical(named(both), named(self.stream(workload, 1, CUTS)), f"{workload}, batches")

    def test_schedule(self, schedule: str) -> None:
        """One share of the peak per step, in [0, 1], the peak among them, whatever the length."""
        for steps in (1, 2, 19, 200):
            shares = np.asarray(self.adapter.multipliers(schedule, steps), np.float64)
            what = f"schedule {schedule!r} of {steps} steps"
            assert shares.shape == (steps,), f"{what}: {shares.shape} shares"
            assert shares.min() >= 0, f"{what}: the lowest share is {shares.min()}"
            assert shares.max() == 1, f"{what}: the highest share is {shares.max()}"


def scribble(arrays: Sequence[Array]) -> None:
    """Overwrite what a caller may overwrite; nothing may come back from it."""
    for array in arrays:
        if array.flags.writeable:
            array[...] = 113
