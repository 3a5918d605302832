"""One source, several array namespaces: the rules ask for nothing outside the standard."""

import importlib
import importlib.util

import array_api_strict
import numpy as np
import pytest
import stam_core
from stam_core import STAMHyperparams, STAMLiteHyperparams

# torch is no test dependency of this package; where the workspace has it, it is one more oracle.
NAMESPACES = [
    name for name in ("numpy", "array_api_strict", "torch") if importlib.util.find_spec(name)
]
SETTINGS = [
    {},
    {"statistics": "corrected", "fallback_threshold": 1.5},
    {"stat_sample": 5},
    {"parity": "stam-optimizer-0.1.0", "fallback_threshold": 1.5},
]


def mean(xp):
    return lambda x: stam_core.local_mean(x, xp=xp)


def stam(xp, gradients, p, dtype, options):
    hp = STAMHyperparams(learning_rate=0.01, **options)
    p = xp.asarray(p.tolist(), dtype=dtype)
    state = stam_core.init_state(p, hp, xp=xp)
    for t, g in enumerate(gradients, start=1):
        g, count = xp.asarray(g.tolist(), dtype=dtype), xp.asarray(float(t), dtype=dtype)
        p, state = stam_core.step(p, g, state, count, hp, xp=xp, mean=mean(xp))
    return p, state.beta1


def stam_lite(xp, gradients, p, dtype, options):
    hp = STAMLiteHyperparams(learning_rate=0.01, **options)
    p = xp.asarray(p.tolist(), dtype=dtype)
    state = stam_core.init_lite_state(p, hp, xp=xp)
    for t, g in enumerate(gradients, start=1):
        g, count = xp.asarray(g.tolist(), dtype=dtype), xp.asarray(float(t), dtype=dtype)
        due = xp.asarray((t - 1) % 5 == 0)
        p, state = stam_core.lite_step(p, g, state, count, due, hp, xp=xp, mean=mean(xp))
    return p, state.statistics.beta1


def lite_options(options):
    return {k: v for k, v in options.items() if k not in ("statistics", "fallback_threshold")}


@pytest.mark.parametrize("name", NAMESPACES)
@pytest.mark.parametrize("options", SETTINGS)
@pytest.mark.parametrize("rule", [stam, stam_lite])
@pytest.mark.parametrize(("precision", "bound"), [("float64", 1e-14), ("float32", 3e-6)])
def test_every_namespace_gives_numpys_float64_numbers(name, options, rule, precision, bound):
    if rule is stam_lite:
        options = lite_options(options)
    rng = np.random.default_rng(4)
    gradients = [rng.standard_normal((3, 4)) * (t % 7) for t in range(1, 41)]
    p = rng.uniform(-1, 1, (3, 4))
    xp = importlib.import_module(name)
    expected, expected_beta1 = rule(np, gradients, p, np.float64, options)
    actual, beta1 = rule(xp, gradients, p, getattr(xp, precision), options)
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=bound)
    np.testing.assert_allclose(float(beta1), expected_beta1, rtol=0, atol=bound)


def test_the_strict_namespace_is_one_that_says_no():
    with pytest.raises(AttributeError):
        array_api_strict.nan_to_num(array_api_strict.asarray(1.0))
