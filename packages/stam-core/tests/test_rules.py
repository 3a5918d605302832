"""What the rules promise beyond their equations: bounds, safety, limits, what measurement says."""

import numpy as np
import pytest
from stam_core import (
    STAM,
    STAM_LITE,
    STAMHyperparams,
    STAMLiteHyperparams,
    sample_stride,
    strided_sample,
)
from stam_core._stam import clip_beta1
from stam_core.reference import Driver

T = np.asarray(5)


def statistics(s2=1.0, tau=1.0):
    return {"s2": np.asarray(s2), "tau": np.asarray(tau), "b1_prod": np.asarray(0.5)}


def run(driver, gradients, p=0.0):
    params = {"w": np.full(np.shape(gradients[0]), p)}
    state = driver.init(params)
    states = []
    for g in gradients:
        params, state = driver.step(params, {"w": np.asarray(g)}, state)
        states.append(state)
    return params, states


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_a_nonfinite_variance_gives_the_base_and_holds_the_statistics(bad):
    with np.errstate(over="ignore"):
        bad_square = np.asarray(bad) * bad
    before = statistics(s2=0.3, tau=0.7)
    after = STAM.advance(before, (bad_square, np.asarray(bad)), T, STAMHyperparams(), xp=np)
    assert (after["s2"], after["tau"], after["beta1"], after["b1_prod"]) == (0.3, 0.7, 0.9, 0.45)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_lite_holds_its_moments_and_falls_back_only_when_due(bad):
    values = {"e1": 0.1, "e2": 0.5, "beta1": 0.77, "b1_prod": 0.5}
    before = {name: np.asarray(x) for name, x in values.items()}
    for count, expected in ((6, 0.9), (7, 0.77)):
        means = (np.asarray(bad), np.asarray(bad))
        after = STAM_LITE.advance(before, means, np.asarray(count), STAMLiteHyperparams(), xp=np)
        assert (after["e1"], after["e2"], after["beta1"]) == (0.1, 0.5, expected)


@pytest.mark.parametrize(
    ("b1", "a", "low"),
    [(0.9, 0.2, 0.72), (0.9, 0.5, 0.5), (0.6, 0.5, 0.5), (0.4, 0.5, 0.4), (0.9, 0.0, 0.9)],
)
def test_beta1_stays_in_its_bounds(b1, a, low):
    s = np.linspace(0.0, 1.0, 101)
    beta1 = clip_beta1(s, np.isfinite(s), b1, a, xp=np)
    np.testing.assert_allclose([beta1.min(), beta1.max()], [low, b1], rtol=1e-15)
    assert (np.diff(beta1) <= 0).all()


def test_the_cap_is_continuous_where_the_package_jumps():
    below, above = (statistics(s2=100.0 * (1 + x), tau=1.0) for x in (-1e-6, 1e-6))
    ours, package = STAMHyperparams(), STAMHyperparams(parity="stam-optimizer-0.1.0")

    def beta1(before, hp):
        kept = {**before, "s2": before["s2"] / hp.b2, "tau": before["tau"] / hp.tau_decay}
        return STAM.advance(kept, (np.asarray(0.0), np.asarray(0.0)), T, hp, xp=np)["beta1"]

    assert abs(beta1(below, ours) - beta1(above, ours)) < 1e-6
    assert beta1(above, package) == 0.9
    assert beta1(below, package) < 0.73


def test_corrected_statistics_are_scale_free_and_the_published_are_not():
    rng = np.random.default_rng(0)
    gradients = [rng.standard_normal((50, 40)) for _ in range(30)]

    def last_beta1(scale, **options):
        driver = Driver(STAM, **options)
        return run(driver, [scale * g for g in gradients])[1][-1]["beta1/w"]

    corrected = [last_beta1(scale, statistics="corrected") for scale in (1e-9, 1.0, 1e9)]
    np.testing.assert_allclose(corrected, corrected[0], rtol=1e-9)
    # Below 1e-4 per entry variance_eps outweighs tau^2, and the published rule is AdamW(b1).
    assert last_beta1(1e-6) > 0.8999
    assert last_beta1(1.0) < 0.87


def test_corrected_statistics_have_no_start_up_ramp_and_the_published_have():
    rng = np.random.default_rng(1)
    gradients = [rng.standard_normal(4000) for _ in range(400)]
    ramp = [s["beta1/w"] for s in run(Driver(STAM), gradients)[1]]
    flat = [s["beta1/w"] for s in run(Driver(STAM, statistics="corrected"), gradients)[1]]
    assert np.ptp(ramp) > 0.1
    assert np.ptp(flat) < 0.01


@pytest.mark.parametrize("statistics_", ["published", "corrected"])
def test_dense_noise_settles_near_079_whatever_its_scale(statistics_):
    """E r^2 >= (E|r|)^2, so z >= 1: beta1 cannot stay at its base."""
    rng = np.random.default_rng(2)
    start = {"published": 6000, "corrected": 600}[statistics_]
    for scale in (0.1, 10.0):
        state = run(
            Driver(STAM, statistics=statistics_),
            [scale * rng.standard_normal(500) for _ in range(start)],
        )[1][-1]
        assert abs(state["beta1/w"] - 0.79) < 0.005
        assert state["s/w"] > 0.5


@pytest.mark.parametrize("options", [{}, {"statistics": "corrected"}])
def test_an_all_zero_residual_is_adamw(options):
    _, states = run(Driver(STAM, **options), [np.zeros(3)] * 3)
    assert states[-1]["beta1/w"] == 0.9
    assert states[-1]["s/w"] == 0.0


def test_the_corrected_z_is_capped_by_the_threshold():
    hp = STAMHyperparams(statistics="corrected", fallback_threshold=50.0)
    before, zero = statistics(s2=1.0, tau=0.0), np.asarray(0.0)
    s = STAM.advance(before, (zero, zero), T, hp, xp=np)["s"]
    assert s / (1 - s) == pytest.approx(50.0)


@pytest.mark.parametrize("shape", [(4096, 4096), (1000, 250), (7, 1), (100_000,), (33, 64, 64)])
@pytest.mark.parametrize("n", [1, 100, 4096])
def test_a_sample_has_at_most_n_entries_spread_over_rows_and_columns(shape, n):
    entries = np.arange(int(np.prod(shape)))
    sample = strided_sample(entries.reshape(shape), n, xp=np).reshape(-1)
    assert len(sample) <= n or len(entries) <= n
    if len(shape) > 1 and shape[-1] > 1 and n >= 100:
        assert len(np.unique(sample % shape[-1])) >= min(shape[-1], len(sample)) // 2
    assert sample_stride(shape, n) >= 1


def test_a_sample_estimates_the_mean_it_stands_for():
    rng = np.random.default_rng(3)
    gradients = [rng.standard_normal((200, 300)) for _ in range(20)]
    full = run(Driver(STAM), gradients)[1][-1]
    part = run(Driver(STAM, stat_sample=4096), gradients)[1][-1]
    assert part["tau/w"] == pytest.approx(full["tau/w"], rel=0.02)
    assert part["tau/w"] != full["tau/w"]


def test_trees_that_differ_are_refused():
    driver = Driver(STAM_LITE)
    params = {"w": np.zeros(2)}
    with pytest.raises(
        ValueError, match=r"^params and grads must have the same leaves, got \['b'\] in only one"
    ):
        driver.step(params, {"w": np.zeros(2), "b": np.zeros(1)}, driver.init(params))
