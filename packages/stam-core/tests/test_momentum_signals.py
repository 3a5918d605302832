"""Where signals for beta1 settle on noise, drift, a random walk and a step: theory against runs.

A gradient g_t = s_t + n_t is a signal in white noise of variance N, the momentum m its filter with
gain k = 1 - b1, and r_t = g_t - m_(t-1) its innovation. With e the variance of s_t - m_(t-1), W
that of the signal's increments, C0 = <r_t, r_t> and C1 = <r_t, r_(t-1)>, the stationary filter has

    C0 = e + N,    C1 = (1-k) e - k N,    e = (1-k)^2 e + W + k^2 N

so c = C1/C0 gives e/C0 = c + k, and W and N with it. The best gain for q = W/N is
k* = (-q + sqrt(q^2 + 4q))/2, and there c = 0.

    pure noise    c = -k/2, W = 0    so k* = 0: average as long as allowed
    pure drift    c = 1, N <= 0      so k* = 1: do not lag
    a step        r fades as (1-k)^t, so c > 0 at once, and -k/2 once the filter has arrived

The published signal compares E r^2 with (E|r|)^2: both scale together, so its beta1 is the same in
all of them. The alignment <g, m>/(|g| |m|) is 0 on noise and also after an orthogonal step.
"""

import numpy as np
import pytest
from stam_core import STAM, STAMHyperparams

D = 500
LARGEST = 0.95


def noise(steps, seed=0, scale=1.0):
    return scale * np.random.default_rng(seed).standard_normal((steps, D))


def walk(steps, q):
    return np.sqrt(q) * np.cumsum(noise(steps, 1), axis=0) + noise(steps, 2)


def filtered(gradients, b1):
    """Return the momentum before each step and the innovations, under a fixed beta1."""
    m, before = np.zeros(D), []
    for g in gradients:
        before.append(m)
        m = b1 * m + (1 - b1) * g
    return np.stack(before), gradients - np.stack(before)


def autocorrelation(r):
    return float((r[1:] * r[:-1]).mean() / (r[1:] ** 2).mean())


def best_gain(q):
    return (-q + np.sqrt(q * q + 4 * q)) / 2


def gain_from(c, k):
    """Return k* from the autocorrelation of innovations under the gain k."""
    error = c + k
    n = 1 - error
    if n <= 0:
        return 1.0
    w = error * (2 * k - k * k) - k * k * n
    return best_gain(max(w, 0.0) / n)


def alignment(g, m):
    return float((g * m).sum() / (np.linalg.norm(g) * np.linalg.norm(m)))


def published_beta1(innovations):
    hp = STAMHyperparams()
    s = {"s2": np.asarray(0.0), "tau": np.asarray(0.0), "b1_prod": np.asarray(1.0)}
    for t, r in enumerate(innovations, 1):
        means = STAM.means(np.abs(r), xp=np, mean=np.mean)
        s = STAM.advance(s, means, np.asarray(t), hp, xp=np)
    return float(s["beta1"])


@pytest.mark.parametrize("b1", [0.0, 0.5, 0.9])
def test_pure_noise_asks_for_all_the_averaging_there_is(b1):
    _, r = filtered(noise(400), b1)
    c = autocorrelation(r[100:])
    assert c == pytest.approx(-(1 - b1) / 2, abs=0.01)
    # The exact value is 0; what a finite run leaves is a small drift.
    assert gain_from(-(1 - b1) / 2, 1 - b1) == pytest.approx(0.0, abs=1e-7)
    assert gain_from(c, 1 - b1) < 0.1


@pytest.mark.parametrize("b1", [0.5, 0.9])
def test_pure_drift_asks_for_none(b1):
    gradients = np.arange(300.0)[:, None] * np.ones(D)
    _, r = filtered(gradients, b1)
    c = autocorrelation(r[200:])
    assert c == pytest.approx(1.0, abs=1e-6)
    assert gain_from(c, 1 - b1) == 1.0


@pytest.mark.parametrize("q", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("b1", [0.3, 0.7, 0.9])
def test_a_random_walk_asks_for_the_best_gain_whatever_the_present_one(q, b1):
    _, r = filtered(walk(900, q), b1)
    c = autocorrelation(r[300:])
    assert gain_from(c, 1 - b1) == pytest.approx(best_gain(q), abs=0.03)


@pytest.mark.parametrize("q", [0.01, 0.1, 1.0])
def test_innovations_are_white_at_the_best_gain(q):
    _, r = filtered(walk(900, q), 1 - best_gain(q))
    assert autocorrelation(r[300:]) == pytest.approx(0.0, abs=0.01)


def test_a_step_turns_the_innovations_and_then_lets_go():
    b1 = 0.9
    gradients = noise(400) + 3.0 * (np.arange(400) >= 200)[:, None]
    _, r = filtered(gradients, b1)
    before, after, later = (
        autocorrelation(r[a:b]) for a, b in ((100, 200), (200, 210), (300, 400))
    )
    assert after > 0.5
    assert gain_from(after, 1 - b1) > 0.6
    assert before == pytest.approx(-0.05, abs=0.01)
    assert later == pytest.approx(-0.05, abs=0.01)


def test_the_published_signal_cannot_tell_them_apart():
    found = [
        published_beta1(filtered(gradients, 0.9)[1][200:])
        for gradients in (noise(4000), walk(4000, 0.1), walk(4000, 1.0))
    ]
    # z of Gaussian innovations is pi/2 whatever their size or order.
    z = np.pi / 2
    assert found == pytest.approx([0.9 * (1 - 0.2 * z / (1 + z))] * 3, abs=0.005)
    assert [1 - best_gain(q) for q in (0.1, 1.0)] == pytest.approx([0.73, 0.382], abs=0.001)


def test_the_alignment_takes_an_orthogonal_step_for_noise():
    m, _ = filtered(noise(200), 0.9)
    assert alignment(noise(1, 3)[0], m[-1]) == pytest.approx(0.0, abs=0.15)
    old, new = np.zeros(D), np.zeros(D)
    old[: D // 2], new[D // 2 :] = 1.0, 1.0
    m, r = filtered(np.stack([old] * 100 + [new] * 3), 0.9)
    assert alignment(old, m[99]) == pytest.approx(1.0)
    assert alignment(new, m[100]) == 0.0
    # The innovations of the same step are parallel to each other.
    assert autocorrelation(r[100:]) > 0.9
