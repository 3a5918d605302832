"""What a workload declares holds, and its numbers depend on the seed alone."""

import subprocess
import sys

import numpy as np
import pytest
from optim_bench.tasks import built_in as workloads
from optim_bench.tasks.built_in import SPLITS, TIERS, WORKLOADS
from optim_bench.tasks.built_in._sampled import epoch_order

# Evaluated examples of train, val and test; number of parameters; sums, for seed 0, of the initial
# parameters and of the inputs and targets of the first two steps.
FACTS = {
    "digits-cnn": ((1200, 297, 300), 38_282, (31.823669, 2508.0625, 514)),
    "diamonds-mlp": ((10_000, 7_000, 6_775), 20_097, (33.942532, 1559.954399, -3.063615)),
    "shakespeare-char": ((128, 128, 128), 112_960, (325.150337, 94_977, 95_222)),
    "patches-denoise": ((1040, 520, 520), 164_672, (-14.984353, -11207.98322, -11213.38817)),
    "permuted-digits": ((1200, 297, 300), 26_122, (22.038232, 1250.9375, 250)),
    "digits-noisy": ((1200, 297, 300), 26_122, (22.038232, 144.375, 27)),
    "shifted-mlp": ((2048, 512, 512), 16_836, (20.433026, 39.122479, 99)),
    "shifted-mlp-b8": ((2048, 512, 512), 16_836, (20.433026, 12.014439, 28)),
    "shifted-mlp-b4": ((2048, 512, 512), 16_836, (20.433026, 10.987786, 9)),
    "rosenbrock": ((1, 1, 1), 2, (-0.220778, 0, 0)),
    "ill-conditioned-quadratic": ((1, 1, 1), 100, (94.857129, -0.072366, 0)),
}
# What the user has to bring files for is tested with tiny ones in test_data_files.py.
CARRIED = [name for name, workload in WORKLOADS.items() if not workload.files]
names = pytest.mark.parametrize("name", CARRIED)


@pytest.mark.parametrize("name", WORKLOADS)
def test_declaration_is_complete(name):
    workload = WORKLOADS[name]

    assert workload.name == name
    assert workload.kind in ("real", "synthetic")
    assert set(workload.steps) == set(TIERS)
    steps = [workload.steps[tier] for tier in TIERS]
    assert steps == sorted(steps)
    assert steps[0] >= 20
    assert workload.judged == "loss"
    assert workload.title
    assert bool(workload.licence) == (workload.kind == "real")


@names
def test_initial_parameters_depend_on_the_seed_alone(name):
    task = WORKLOADS[name].arrays(None)
    first, again, other = task.initial(3), task.initial(3), task.initial(4)

    assert all(value.dtype == np.float32 for value in first.values())
    assert all(np.array_equal(first[key], again[key]) for key in first)
    assert any(not np.array_equal(first[key], other[key]) for key in first)


@names
def test_batches_depend_on_the_seed_alone_and_not_on_the_chunks(name):
    task = WORKLOADS[name].arrays(None)

    def stream(seed, sizes):
        inputs, targets = zip(*task.chunks(seed, sizes), strict=True)
        return np.concatenate(inputs), np.concatenate(targets)

    whole, pieces, other = stream(1, [30]), stream(1, [1, 19, 10]), stream(2, [30])
    for left, right in zip(whole, pieces, strict=True):
        assert np.array_equal(left, right)
    if whole[0].any():  # Rosenbrock has no noise.
        assert not np.array_equal(whole[0], other[0])
    assert whole[0].shape[:2] == (30, WORKLOADS[name].batch)


@names
def test_evaluation_sets_are_finite_and_differ_between_splits(name):
    task = WORKLOADS[name].arrays(None)
    sets = [task.evaluation(split, 0, 1) for split in SPLITS]
    if WORKLOADS[name].loss == "objective":
        return  # A function has no splits; its own test below says what it is.

    for inputs, targets in sets:
        assert len(inputs) == len(targets)
        assert np.isfinite(inputs).all()
        assert np.isfinite(targets).all()
    assert not any(np.array_equal(sets[i][0], sets[j][0]) for i, j in ((0, 1), (0, 2), (1, 2)))


@names
def test_sizes_and_numbers_are_the_published_ones(name):
    """Another NumPy must not silently change what a version of a workload means."""
    sizes, parameters, sums = FACTS[name]
    task = WORKLOADS[name].arrays(None)
    initial = task.initial(0)
    inputs, targets = next(task.chunks(0, [2]))
    found = [
        sum(value.astype(np.float64).sum() for value in initial.values()),
        inputs.sum(dtype=np.float64),
        targets.sum(dtype=np.float64),
    ]

    assert tuple(len(task.evaluation(split, 0, 1)[0]) for split in SPLITS) == sizes
    assert sum(value.size for value in initial.values()) == parameters
    assert found == pytest.approx(sums, rel=1e-5, abs=1e-6)


def test_noisy_labels_are_wrong_for_exactly_thirty_percent_of_training_alone():
    noisy = WORKLOADS["digits-noisy"].arrays(None).splits
    clean = WORKLOADS["digits-cnn"].arrays(None).splits

    assert int((noisy["train"][1] != clean["train"][1]).sum()) == 360
    assert np.array_equal(noisy["val"][1], clean["val"][1])
    assert np.array_equal(noisy["test"][1], clean["test"][1])


def test_permuted_digits_change_with_each_task_and_seed_and_keep_their_pixels():
    task = WORKLOADS["permuted-digits"].arrays(None)
    first, same, later = (task.evaluation("val", 0, step)[0] for step in (1, 60, 61))

    assert np.array_equal(first, same)
    assert not np.array_equal(first, later)
    assert not np.array_equal(first, task.evaluation("val", 1, 1)[0])
    assert np.array_equal(np.sort(first, axis=1), np.sort(later, axis=1))


def test_permuted_digits_train_and_judge_under_one_permutation():
    """Step 61 (number 60 from 0) is the first of the second task, in training and in judging."""
    task = WORKLOADS["permuted-digits"].arrays(None)
    inputs, _ = next(task.chunks(0, [61]))
    for step in (60, 61):
        pool = {row.tobytes() for row in task.evaluation("train", 0, step)[0]}
        assert {row.tobytes() for row in inputs[step - 1]} <= pool


def test_patch_splits_share_no_pixel_and_hold_the_noise_they_say():
    task = WORKLOADS["patches-denoise"].arrays(None)
    widths = {split: [image.shape[1] for image in task.regions[split]] for split in SPLITS}
    noisy, clean = task.evaluation("val", 0, 1)
    _, streamed = next(task.chunks(0, [1]))

    assert widths == {"train": [320, 320], "val": [160, 160], "test": [160, 160]}
    assert float((noisy - clean).std()) == pytest.approx(0.15, rel=0.01)
    assert -0.5 <= streamed.min() < streamed.max() <= 0.5


def test_text_targets_are_the_next_characters_and_the_splits_are_whole_plays():
    task = WORKLOADS["shakespeare-char"].arrays(None)
    inputs, targets = next(task.chunks(0, [3]))

    assert np.array_equal(inputs[..., 1:], targets[..., :-1])
    assert task.symbols == 80
    assert {split: len(task.tokens[split]) for split in SPLITS} == {
        "train": 887_037,
        "val": 114_878,
        "test": 125_230,
    }


def test_no_diamond_and_no_digit_is_in_two_splits():
    for name in ("digits-cnn", "diamonds-mlp"):
        splits = WORKLOADS[name].arrays(None).splits
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
    with pytest.raises(ValueError, match="no workload named 'mnist'; there are cifar10-cnn, "):
        workloads.get("mnist")


def test_importing_the_registries_loads_no_framework():
    code = (
        "import sys, optim_bench.tasks, optim_bench.optimizers, optim_bench.executors.train\n"
        "from optim_bench.optimizers import resolve\n"
        "resolve('adamw', 'jax'), resolve('stac', 'torch')\n"
        "names = ('jax', 'torch', 'optax', 'stam_jax', 'stac_torch')\n"
        "print([name for name in names if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    assert result.stdout.strip() == "[]"


def test_synthetic_workloads_say_so_and_the_six_default_ones_are_real():
    real = [name for name, workload in WORKLOADS.items() if workload.kind == "real"]

    assert real[:6] == [
        "digits-cnn",
        "diamonds-mlp",
        "shakespeare-char",
        "patches-denoise",
        "permuted-digits",
        "digits-noisy",
    ]


def test_shifted_mlp_changes_its_distribution_in_time():
    task = WORKLOADS["shifted-mlp"].arrays(None)
    before, same, after = (task.evaluation("val", 0, step)[0] for step in (1, 250, 251))
    inputs, _ = next(task.chunks(0, [251]))

    assert np.array_equal(before, same)
    assert float(after.mean() - before.mean()) == pytest.approx(0.7, abs=0.03)
    assert float(inputs[250].mean() - inputs[:250].mean()) == pytest.approx(0.7, abs=0.1)


def test_the_quadratic_has_the_condition_number_it_says_and_no_axis_to_exploit():
    matrix = workloads.curvature().astype(np.float64)
    eigenvalues = np.linalg.eigvalsh(matrix)

    assert eigenvalues[-1] / eigenvalues[0] == pytest.approx(1e4, rel=0.02)
    assert np.abs(matrix - np.diag(np.diag(matrix))).max() > 0.01


def test_targets_are_in_the_curve_and_say_where_they_come_from():
    targets = {name: w.target for name, w in WORKLOADS.items() if w.target is not None}

    assert {"digits-cnn", "diamonds-mlp", "digits-noisy", "permuted-digits"} <= set(targets)
    for name, target in targets.items():
        assert target.metric == "val_loss"
        assert 0 < target.value < 3, name
        assert "three quarters of the standard horizon" in target.origin
