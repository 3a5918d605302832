"""Statistics against closed forms, brute force and scipy."""

import itertools
import math

import numpy as np
import pytest
from optim_bench.results.stats import (
    best_of,
    bootstrap_aggregates,
    compare_paired,
    holm,
    interquartile_mean,
    log_ratio,
    performance_profile,
    probability_of_improvement,
    profile_area,
    reachable,
    sign_flip_p_value,
    smallest_detectable,
    smallest_p_value,
    steps_to_target,
)
from scipy import stats as reference

INF = math.inf


@pytest.mark.parametrize(
    ("loss", "baseline", "expected"),
    [
        (1.0, 1.0, 0.0),
        (2.0, 1.0, math.log(2)),
        (0.0, 0.0, 0.0),
        (0.0, 1.0, -INF),
        (1.0, 0.0, INF),
        (INF, 1.0, INF),
        (1.0, INF, -INF),
        (INF, INF, 0.0),
    ],
)
def test_log_ratio_covers_ties_zeros_and_divergence(loss, baseline, expected):
    assert log_ratio(loss, baseline) == pytest.approx(expected)


@pytest.mark.parametrize("bad", [-1.0, math.nan])
def test_log_ratio_refuses_what_is_no_loss(bad):
    with pytest.raises(ValueError, match=r"ratios need losses of at least 0"):
        log_ratio(bad, 1.0)
    with pytest.raises(ValueError, match=r"ratios need losses of at least 0"):
        log_ratio(1.0, bad)


def test_interval_is_student_t_on_the_log_ratios():
    rng = np.random.default_rng(0)
    x, y = np.exp(rng.normal(size=(2, 9)))
    result = compare_paired(dict(enumerate(x)), dict(enumerate(y)))
    expected = reference.ttest_1samp(np.log(x / y), 0).confidence_interval(0.95)
    assert (result.low, result.high) == pytest.approx((expected.low, expected.high))
    assert result.pairs == 9


def test_only_shared_seeds_are_compared():
    result = compare_paired({0: 1.0, 1: 2.0, 7: 99.0}, {0: 1.0, 1: 1.0, 5: 99.0})
    assert result.pairs == 2
    assert result.log_ratio == pytest.approx(math.log(2) / 2)


def test_divergence_is_counted_by_side_and_gives_no_interval():
    result = compare_paired({0: INF, 1: 1.0, 2: INF}, {0: 1.0, 1: INF, 2: INF})
    assert (result.pairs, result.diverged, result.baseline_diverged) == (3, 1, 1)
    assert result.log_ratio is result.low is result.p_value is None


def test_no_shared_seed_gives_no_numbers():
    result = compare_paired({0: 1.0}, {1: 1.0})
    assert result.pairs == 0
    assert result.log_ratio is None


def test_one_pair_has_a_ratio_and_no_interval():
    result = compare_paired({0: 2.0}, {0: 1.0})
    assert result.log_ratio == pytest.approx(math.log(2))
    assert result.low is None
    assert result.p_value == 1.0


def test_all_ties_give_a_point_interval_and_p_one():
    same = dict.fromkeys(range(6), 0.5)
    result = compare_paired(same, same)
    assert (result.log_ratio, result.low, result.high, result.p_value) == (0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize("seed", range(5))
def test_sign_flip_equals_brute_force(seed):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=7) + 0.5
    flips = np.array(list(itertools.product((-1, 1), repeat=7))) @ values
    expected = np.mean(np.abs(flips) >= abs(values.sum()) - 1e-12)
    assert sign_flip_p_value(list(values)) == pytest.approx(expected)


def test_sign_flip_equals_scipys_exact_permutation_test():
    values = np.array([0.3, -0.1, 0.2, 0.25, 0.05, 0.4, -0.02, 0.1])
    expected = reference.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    assert sign_flip_p_value(list(values)) == pytest.approx(expected.pvalue)


def test_sign_flip_counts_sums_that_differ_by_rounding_as_ties():
    # 0.1 + 0.2 - 0.3 is not 0 in binary, yet all signs of these give one of four sums.
    assert sign_flip_p_value([0.1, 0.2, -0.3]) == 1.0


@pytest.mark.parametrize("pairs", [1, 5, 8, 20])
def test_smallest_p_value_is_what_equal_differences_give(pairs):
    assert sign_flip_p_value([0.1] * pairs) == pytest.approx(smallest_p_value(pairs))


@pytest.mark.parametrize("values", [[], [0.1] * 21])
def test_sign_flip_refuses_sizes_outside_its_range(values):
    with pytest.raises(ValueError, match=r"exact test takes 1 to 20"):
        sign_flip_p_value(values)


def test_sign_flip_refuses_what_is_no_number():
    with pytest.raises(ValueError, match="a difference is NaN"):
        sign_flip_p_value([0.1, math.nan])


@pytest.mark.parametrize("seed", range(8))
def test_infinite_differences_are_the_largest_there_are(seed):
    rng = np.random.default_rng(seed)
    large = 1e6
    finite = rng.normal(size=7)
    at = rng.choice(7, size=rng.integers(1, 7), replace=False)
    signs = rng.choice([-1.0, 1.0], size=len(at))
    stand_in, infinite = finite.copy(), finite.copy()
    stand_in[at], infinite[at] = large * signs, np.inf * signs
    assert sign_flip_p_value(infinite.tolist()) == sign_flip_p_value(stand_in.tolist())


def test_zero_losses_decide_as_far_as_their_number_goes():
    ones = dict.fromkeys(range(8), 1.0)
    all_zero = compare_paired(dict.fromkeys(range(8), 0.0), ones)
    assert (all_zero.log_ratio, all_zero.low, all_zero.high) == (-math.inf, None, None)
    assert all_zero.p_value == 2 / 2**8
    one_zero = compare_paired({**ones, 3: 0.0}, ones)
    assert (one_zero.log_ratio, one_zero.p_value) == (-math.inf, 1.0)
    balanced = compare_paired({**ones, 0: 0.0, 1: 2.0}, {**ones, 2: 0.0})
    assert balanced.log_ratio == pytest.approx(math.log(2) / 8)


def test_false_alarms_stay_below_the_level():
    rng = np.random.default_rng(1)
    p_values = [sign_flip_p_value(list(rng.normal(size=8))) for _ in range(2000)]
    assert np.mean(np.array(p_values) <= 0.05) == pytest.approx(0.047, abs=0.013)


def test_holm_equals_hand_computation():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_refuses_what_is_no_p_value():
    with pytest.raises(ValueError, match=r"p-value is 1.5; it has to be in \[0, 1\]"):
        holm([1.5])


def test_ten_seeds_reach_the_level_in_a_family_of_25_and_five_never():
    assert reachable([smallest_p_value(10)] * 25, 0.05) == [True] * 25
    assert reachable([smallest_p_value(10)] * 26, 0.05) == [False] * 26
    assert reachable([smallest_p_value(5)], 0.05) == [False]


def test_smallest_detectable_has_the_power_it_claims():
    effect = smallest_detectable(0.2, 10, alpha=0.05)
    draws = np.random.default_rng(0).normal(effect, 0.2, size=(4000, 10))
    p_values = reference.ttest_1samp(draws, 0, axis=1).pvalue
    assert np.mean(p_values < 0.05) == pytest.approx(0.8, abs=0.025)


def test_smallest_detectable_shrinks_with_pairs_and_noise():
    assert smallest_detectable(0.1, 20, alpha=0.05) < smallest_detectable(0.1, 8, alpha=0.05)
    assert smallest_detectable(0.1, 8, alpha=0.05) < smallest_detectable(0.1, 8, alpha=0.01)
    assert smallest_detectable(0.0, 8, alpha=0.05) == 0.0
    assert smallest_detectable(0.1, 1, alpha=0.05) is None


@pytest.mark.parametrize("size", [4, 7, 10, 16])
def test_interquartile_mean_equals_scipys_trimmed_mean(size):
    values = np.random.default_rng(size).normal(size=size)
    assert interquartile_mean(values) == pytest.approx(reference.trim_mean(values, 0.25))


def test_interquartile_mean_cuts_divergence_only_where_it_is_rare():
    assert interquartile_mean([INF, 1.0, 1.0, 1.0]) == 1.0
    assert interquartile_mean([INF, INF, 1.0, 1.0]) == INF


@pytest.mark.parametrize("values", [[], [1.0, math.nan]])
def test_interquartile_mean_refuses_nothing_and_nan(values):
    with pytest.raises(ValueError, match="at least one value and no NaN"):
        interquartile_mean(values)


def test_probability_of_improvement_counts_ties_half():
    assert probability_of_improvement([0.0, 0.0]) == 0.5
    assert probability_of_improvement([-1.0, INF]) == 0.5
    assert probability_of_improvement([-1.0, -INF, -0.1]) == 1.0


def scores(rng, optimizers=("a", "b"), workloads=("v", "w"), seeds=8, shift=0.0):
    return {
        o: {w: {s: rng.normal() + shift for s in range(seeds)} for w in workloads}
        for o in optimizers
    }


def test_bootstrap_is_reproducible_and_depends_on_its_seed():
    given = scores(np.random.default_rng(0))
    assert bootstrap_aggregates(given) == bootstrap_aggregates(given)
    assert bootstrap_aggregates(given) != bootstrap_aggregates(given, seed=1)


def test_bootstrap_interval_agrees_with_scipys_for_one_workload():
    values = np.random.default_rng(3).normal(size=16)
    ours = bootstrap_aggregates({"a": {"w": dict(enumerate(values))}})["a"]["interquartile_mean"]
    theirs = reference.bootstrap(
        (values,),
        lambda x, axis: reference.trim_mean(x, 0.25, axis=axis),
        method="percentile",
        n_resamples=5000,
        rng=0,
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.05)


def test_bootstrap_draws_the_same_seeds_for_every_optimizer():
    base = scores(np.random.default_rng(0), optimizers=("a",))["a"]
    shifted = {w: {s: v + 0.25 for s, v in seeds.items()} for w, seeds in base.items()}
    result = bootstrap_aggregates({"a": base, "b": shifted})
    a, b = result["a"]["interquartile_mean"], result["b"]["interquartile_mean"]
    assert (b.value - a.value, b.low - a.low, b.high - a.high) == pytest.approx((0.25,) * 3)


def test_bootstrap_keeps_workloads_apart():
    # Within each workload all seeds agree, so resampling seeds changes nothing.
    given = {"a": {"v": dict.fromkeys(range(5), -1.0), "w": dict.fromkeys(range(5), 2.0)}}
    result = bootstrap_aggregates(given)["a"]["interquartile_mean"]
    assert (result.low, result.value, result.high) == (0.5, 0.5, 0.5)


def test_bootstrap_survives_divergence():
    given = {"a": {"w": {0: -0.1, 1: INF, 2: -0.2, 3: -0.3, 4: -0.1, 5: -0.2}}}
    result = bootstrap_aggregates(given)["a"]
    assert result["interquartile_mean"].value == pytest.approx(-0.15)
    assert result["interquartile_mean"].high == INF
    assert result["probability_of_improvement"].value == pytest.approx(5 / 6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "0 different designs"),
        ({"a": {"w": {0: 0.0}}, "b": {"w": {1: 0.0}}}, "2 different designs"),
        ({"a": {"w": {}}}, "at least one seed"),
        ({"a": {}}, "at least one seed"),
    ],
)
def test_bootstrap_refuses_unequal_designs(given, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_aggregates(given)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([0.9, 0.5, 0.4, 0.3], 20.0),
        ([0.9, 0.5, 0.6, 0.5], INF),
        ([0.4, 0.4, 0.9, 0.9], 10.0),
        ([0.9, 0.9, 0.9, 0.1], INF),
        ([None, None, 0.5, 0.5], 30.0),
        ([0.5, None, 0.5, 0.6], INF),
        ([], INF),
    ],
)
def test_target_counts_only_when_two_evaluations_in_a_row_reach_it(losses, expected):
    assert steps_to_target([10, 20, 30, 40][: len(losses)], losses, 0.5) == expected


def test_profile_of_hand_made_costs():
    costs = {"a": [10.0, 20.0, INF, INF], "b": [20.0, 10.0, 5.0, INF]}
    profile = performance_profile(costs, [1.0, 2.0, 100.0])
    assert profile == {"a": [0.25, 0.5, 0.5], "b": [0.5, 0.75, 0.75]}


@pytest.mark.parametrize(
    ("costs", "message"),
    [
        ({}, "same problems for every solver"),
        ({"a": [1.0], "b": []}, "same problems for every solver"),
        ({"a": [0.0]}, "cost is 0.0; costs are above 0"),
        ({"a": [math.nan]}, "cost is nan; costs are above 0"),
    ],
)
def test_profile_refuses_what_has_no_ratio(costs, message):
    with pytest.raises(ValueError, match=message):
        performance_profile(costs, [1.0])


@pytest.mark.parametrize("size", [1, 2, 5, 7])
def test_best_of_equals_every_draw(size):
    scores = np.random.default_rng(size).normal(size=size).tolist()
    for k, found in enumerate(best_of(scores), start=1):
        draws = [min(draw) for draw in itertools.combinations(scores, k)]
        assert found.expected == pytest.approx(np.mean(draws))
        assert found.low == np.quantile(draws, 0.25, method="inverted_cdf")
        assert found.high == np.quantile(draws, 0.75, method="inverted_cdf")


def test_best_of_is_infinite_while_only_diverged_trials_can_be_drawn():
    found = best_of([1.0, math.inf, math.inf, 2.0])
    assert [math.isinf(best.expected) for best in found] == [True, True, False, False]
    assert found[2].expected == pytest.approx(1.25)
    assert found[-1].expected == 1.0


def test_best_of_takes_a_score_of_minus_infinity_beside_a_diverged_one():
    found = [best.expected for best in best_of([-math.inf, 0.0, math.inf])]
    assert found == [math.inf, -math.inf, -math.inf]


@pytest.mark.parametrize("scores", [[], [1.0, math.nan]])
def test_best_of_refuses_nothing_and_nan(scores):
    with pytest.raises(ValueError, match="at least one score and no NaN"):
        best_of(scores)


def test_the_area_of_a_profile_is_that_of_its_steps():
    assert profile_area([1.0, 1.5, 4.0], [0.2, 0.8, 1.0]) == pytest.approx((0.1 + 2.0) / 3)
    assert profile_area([1.0, 4.0], [1.0, 1.0]) == 1.0


@pytest.mark.parametrize("ratios", [[1.0], [1.0, 1.0], [2.0, 1.0]])
def test_an_area_needs_ascending_ratios(ratios):
    with pytest.raises(ValueError, match="an area needs two or more, ascending"):
        profile_area(ratios, [0.5] * len(ratios))


def test_other_workloads_vary_more_than_other_seeds():
    # Seeds agree within each workload, workloads do not agree with each other.
    scores = {
        "ours": {"a": dict.fromkeys(range(5), -0.5), "b": dict.fromkeys(range(5), 0.5)},
    }
    found = bootstrap_aggregates(scores)["ours"]
    seeds, workloads = found["interquartile_mean"], found["interquartile_mean_over_workloads"]
    assert (seeds.value, seeds.low, seeds.high) == (0.0, 0.0, 0.0)
    assert (workloads.value, workloads.low, workloads.high) == (0.0, -0.5, 0.5)


def test_a_draw_of_workloads_is_as_many_as_there_are():
    scores = {
        "ours": {
            w: dict.fromkeys(range(5), x) for w, x in zip("abc", (-0.6, 0.0, 0.6), strict=True)
        }
    }
    found = bootstrap_aggregates(scores, level=0.8)["ours"]["interquartile_mean_over_workloads"]
    # 1 draw in 27 is all of the lowest; the next 3 hold it twice, 7 of 9 values after the cut.
    assert found.low == pytest.approx(-0.6 * 7 / 9)
    assert found.high == pytest.approx(0.6 * 7 / 9)


def test_the_interval_over_seeds_does_not_depend_on_the_one_over_workloads():
    # Numbers of the one bootstrap alone, drawn here by hand with its seed.
    scores = {"ours": {"w": {s: float(v) for s, v in enumerate([0.1, -0.3, 0.2, 0.7])}}}
    values = np.array(list(scores["ours"]["w"].values()))
    generator = np.random.default_rng(20240607)
    draws = np.sort([interquartile_mean(values[generator.integers(4, size=4)]) for _ in range(700)])
    found = bootstrap_aggregates(scores, resamples=700)["ours"]["interquartile_mean"]
    assert found.low == pytest.approx(np.quantile(draws, 0.025, method="inverted_cdf"))
