"""What a workload declares holds, and its numbers depend on the seed alone."""

import subprocess
import sys

import numpy as np
import pytest
from optim_bench import workloads
from optim_bench.workloads import SPLITS, TIERS, WORKLOADS
from optim_bench.workloads._sampled import epoch_order

# Sizes of train, val and test; number of parameters; sum of the initial parameters of seed 0.
FACTS = {
    "digits-cnn": ((1200, 297, 300), 38_282, 31.823669),
    "diamonds-mlp": ((40_000, 7_000, 6_775), 20_097, 33.942532),
}
names = pytest.mark.parametrize("name", WORKLOADS)


@names
def test_declaration_is_complete(name):
    workload = WORKLOADS[name]

    assert workload.name == name
    assert workload.kind in ("real", "synthetic")
    assert set(workload.steps) == set(TIERS)
    steps = [workload.steps[tier] for tier in TIERS]
    assert steps == sorted(steps)
    assert steps[0] >= 20
    assert workload.judged in ("last", "second half")
    assert workload.title
    assert bool(workload.licence) == (workload.kind == "real")


@names
def test_initial_parameters_depend_on_the_seed_alone(name):
    task = WORKLOADS[name].task(None)
    first, again, other = task.initial(3), task.initial(3), task.initial(4)

    assert all(value.dtype == np.float32 for value in first.values())
    assert all(np.array_equal(first[key], again[key]) for key in first)
    assert any(not np.array_equal(first[key], other[key]) for key in first)


@names
def test_batches_depend_on_the_seed_alone_and_not_on_the_chunks(name):
    task = WORKLOADS[name].task(None)

    def stream(seed, sizes):
        inputs, targets = zip(*task.chunks(seed, sizes), strict=True)
        return np.concatenate(inputs), np.concatenate(targets)

    whole, pieces, other = stream(1, [30]), stream(1, [1, 19, 10]), stream(2, [30])
    for left, right in zip(whole, pieces, strict=True):
        assert np.array_equal(left, right)
    assert not np.array_equal(whole[0], other[0])
    assert whole[0].shape[:2] == (30, WORKLOADS[name].batch)


@names
def test_evaluation_sets_are_finite_and_differ_between_splits(name):
    task = WORKLOADS[name].task(None)
    sets = [task.evaluation(split, 0, 1) for split in SPLITS]

    for inputs, targets in sets:
        assert len(inputs) == len(targets)
        assert np.isfinite(inputs).all()
        assert np.isfinite(targets).all()
    assert not any(np.array_equal(sets[i][0], sets[j][0]) for i, j in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize("name", FACTS)
def test_sizes_and_numbers_are_the_published_ones(name):
    """Another NumPy must not silently change what a version of a workload means."""
    sizes, parameters, total = FACTS[name]
    task = WORKLOADS[name].task(None)
    initial = task.initial(0)

    assert tuple(len(task.splits[split][0]) for split in SPLITS) == sizes
    assert sum(value.size for value in initial.values()) == parameters
    assert sum(value.astype(np.float64).sum() for value in initial.values()) == pytest.approx(
        total, abs=1e-3
    )


def test_no_diamond_and_no_digit_is_in_two_splits():
    for name in ("digits-cnn", "diamonds-mlp"):
        splits = WORKLOADS[name].task(None).splits
        rows = {
            split: {x.tobytes() + y.tobytes() for x, y in zip(*splits[split], strict=True)}
            for split in SPLITS
        }
        assert not rows["train"] & rows["val"]
        assert not rows["train"] & rows["test"]
        assert not rows["val"] & rows["test"]


def test_evaluation_steps_end_with_the_last_step_and_fit_a_curve():
    for workload in WORKLOADS.values():
        for steps in (1, 7, 40, 999, 100_000):
            points = workload.evaluation_steps(steps)
            assert points == sorted(set(points))
            assert points[-1] == steps
            assert len(points) <= 200


def test_epochs_use_every_example_once():
    order = epoch_order(np.random.default_rng(0), examples=10, batch=4)
    rows = np.concatenate([next(order) for _ in range(10)])

    assert sorted(rows[:10]) == list(range(10))
    assert np.array_equal(np.bincount(rows), np.full(10, 4))
    assert not np.array_equal(rows[:10], rows[10:20])


def test_an_unknown_workload_lists_what_there_is():
    with pytest.raises(ValueError, match="no workload named 'mnist'; there are diamonds-mlp, "):
        workloads.get("mnist")


def test_importing_the_registries_loads_no_framework():
    code = (
        "import sys, optim_bench.workloads, optim_bench.optimizers, optim_bench.train\n"
        "from optim_bench.optimizers import resolve\n"
        "resolve('adamw', 'jax'), resolve('stac', 'torch')\n"
        "names = ('jax', 'torch', 'optax', 'stam_jax', 'stac_torch')\n"
        "print([name for name in names if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    assert result.stdout.strip() == "[]"
