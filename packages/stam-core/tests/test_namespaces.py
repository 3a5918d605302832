"""One source, several array namespaces: the rules ask for nothing outside the standard."""

import importlib
import importlib.util

import array_api_strict
import numpy as np
import pytest
from stam_core import RULES, local_mean

# torch is no test dependency of this package; where the workspace has it, it is one more oracle.
NAMESPACES = [
    name for name in ("numpy", "array_api_strict", "torch") if importlib.util.find_spec(name)
]
PARITY = {"parity": "stam-optimizer-0.1.0"}
ROWS = [
    ("stam", {}),
    ("stam", {"statistics": "corrected", "fallback_threshold": 1.5}),
    ("stam", {"stat_sample": 5}),
    ("stam", {**PARITY, "fallback_threshold": 1.5}),
    ("stam_lite", {}),
    ("stam_lite", {"stat_sample": 5}),
    ("stam_lite", PARITY),
    ("sign", {"weight_decay": 0.1}),
    ("sign", {"sign_momentum": 0.0, "maximize": True}),
    ("adamw", {"weight_decay": 0.1}),
    ("adamw", {"amsgrad": True, "maximize": True}),
]


class Torch:
    """PyTorch under the two names of the standard that it lacks."""

    def __getattr__(self, name):
        return getattr(importlib.import_module("torch"), name)

    def astype(self, x, dtype):
        return x.to(dtype)

    def isdtype(self, dtype, kind):
        return dtype.is_complex if kind == "complex floating" else NotImplemented


def namespace(name):
    return Torch() if name == "torch" else importlib.import_module(name)


def run(rule, xp, gradients, p, dtype, options):
    hp = rule.hyperparams(learning_rate=0.01, **options)
    p = xp.asarray(p.tolist(), dtype=dtype)
    state = rule.init(p, hp, xp=xp)
    for t, g in enumerate(gradients, start=1):
        # Torch counts its steps in float32.
        count = xp.asarray(t, dtype=xp.float32 if isinstance(xp, Torch) else xp.int32)
        g = xp.asarray(g.tolist(), dtype=dtype)
        p, state = rule.step(p, g, state, count, hp, xp=xp, mean=lambda x: local_mean(x, xp=xp))
    return {"p": p, **state}


@pytest.mark.parametrize("name", NAMESPACES)
@pytest.mark.parametrize(("rule", "options"), ROWS)
@pytest.mark.parametrize(("precision", "bound"), [("float64", 1e-14), ("float32", 3e-6)])
def test_every_namespace_gives_numpys_float64_numbers(name, rule, options, precision, bound):
    rng = np.random.default_rng(4)
    gradients = [rng.standard_normal((3, 4)) * (t % 7) for t in range(1, 41)]
    p = rng.uniform(-1, 1, (3, 4))
    xp = namespace(name)
    expected = run(RULES[rule], np, gradients, p, np.float64, options)
    actual = run(RULES[rule], xp, gradients, p, getattr(xp, precision), options)
    for slot in expected.keys() & {"p", "beta1"}:
        np.testing.assert_allclose(
            np.asarray(actual[slot]), expected[slot], rtol=0, atol=bound, err_msg=slot
        )


def test_the_strict_namespace_is_one_that_says_no():
    with pytest.raises(AttributeError):
        array_api_strict.nan_to_num(array_api_strict.asarray(1.0))
