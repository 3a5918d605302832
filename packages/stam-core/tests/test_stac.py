"""The rules of STAC: hand-computed steps, exact limits, namespaces and messages."""

import re

import numpy as np
import pytest
from stam_core import ADAMW, SIGN, STACHyperparams, reference
from stam_core._sign import sign_with_nan

OUT_OF_RANGE = [
    ("learning_rate", -1e-3, ">= 0 and finite", 1e-3),
    ("learning_rate", float("nan"), ">= 0 and finite", 1e-3),
    ("learning_rate", float("inf"), ">= 0 and finite", 1e-3),
    ("sign_momentum", 1.0, "in [0, 1)", 0.9),
    ("sign_momentum", -0.1, "in [0, 1)", 0.9),
    ("sign_lr_scale", -0.75, ">= 0 and finite", 1.0),
    ("b1", 1.0, "in [0, 1)", 0.9),
    ("b2", -0.5, "in [0, 1)", 0.999),
    ("eps", -1e-8, ">= 0 and finite", 1e-8),
    ("weight_decay", -0.1, ">= 0 and finite", 0.0),
    ("sign_weight_decay", -0.1, ">= 0 and finite", None),
    ("adamw_weight_decay", -0.1, ">= 0 and finite", None),
]


@pytest.mark.parametrize(("name", "value", "text", "default"), OUT_OF_RANGE)
def test_out_of_range(name, value, text, default):
    message = f"{name} must be {text}, got {value!r}: the default is {default!r}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        STACHyperparams(**{name: value})


def test_not_a_number():
    message = "sign_momentum must be a number, got '0.9' (str): the default is 0.9"
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        STACHyperparams(sign_momentum="0.9")


@pytest.mark.parametrize("name", ["amsgrad", "maximize"])
def test_not_a_flag(name):
    with pytest.raises(ValueError, match=f"^{name} must be True or False, got 'yes'$"):
        STACHyperparams(**{name: "yes"})


@pytest.mark.parametrize("name", ["learning_rate", "sign_momentum", "b1", "b2", "weight_decay"])
def test_zero_is_in_range(name):
    assert getattr(STACHyperparams(**{name: 0.0}), name) == 0.0


def step(rule, p, g, state, hp, count=1):
    return rule.step(p, g, state, np.asarray(count), hp, xp=np, mean=np.mean)


def gradients(steps, shape=(3, 4), seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for _ in range(steps)]


def test_all_sign_is_lion_with_equal_decays():
    """Lion: c = b1 m + (1-b1) g; p <- p - lr (sign(c) + wd p); m <- b2 m + (1-b2) g."""
    lr, decay, momentum = 1e-2, 0.1, 0.9
    hp = STACHyperparams(learning_rate=lr, sign_momentum=momentum, weight_decay=decay)
    p = lion_p = np.linspace(-1, 1, 12).reshape(3, 4)
    lion_m = np.zeros_like(p)
    state = SIGN.init(p, hp, xp=np)
    for g in gradients(100):
        p, state = step(SIGN, p, g, state, hp)
        c = momentum * lion_m + (1 - momentum) * g
        lion_p = lion_p - lr * (np.sign(c) + decay * lion_p)
        lion_m = momentum * lion_m + (1 - momentum) * g
    np.testing.assert_array_equal(state["mu"], lion_m)
    np.testing.assert_allclose(p, lion_p, rtol=0, atol=1e-14)


@pytest.mark.parametrize("amsgrad", [False, True])
def test_adamw_first_two_steps_by_hand(amsgrad):
    hp = STACHyperparams(
        learning_rate=0.1, b1=0.5, b2=0.75, eps=0.25, weight_decay=0.2, amsgrad=amsgrad
    )
    p = np.asarray([2.0])
    state = ADAMW.init(p, hp, xp=np)
    p, state = step(ADAMW, p, np.asarray([4.0]), state, hp)
    # m = 2, v = 4; corrected m = 4, v = 16; p = 2*0.98 - 0.1*4/4.25
    np.testing.assert_allclose(p, [1.96 - 0.4 / 4.25], rtol=1e-15)
    before = p
    p, state = step(ADAMW, p, np.asarray([0.0]), state, hp, count=2)
    # m = 1, v = 3 (its maximum stays 4); m/(1-0.25), v/(1-0.5625)
    second = (4.0 if amsgrad else 3.0) / 0.4375
    expected = before * 0.98 - 0.1 * (1 / 0.75) / (second**0.5 + 0.25)
    np.testing.assert_allclose(p, expected, rtol=1e-15)
    assert state["nu"].tolist() == [3.0]
    assert ("nu_max" in state) is amsgrad


def test_without_momentum_no_state():
    hp = STACHyperparams(learning_rate=0.5, sign_momentum=0.0)
    p = np.asarray([1.0, 1.0, 1.0])
    assert SIGN.init(p, hp, xp=np) == {}
    p, state = step(SIGN, p, np.asarray([1e-30, 0.0, -7.0]), {}, hp)
    assert state == {}
    assert p.tolist() == [0.5, 1.0, 1.5]


def test_maximize_ascends_in_both_sections():
    up = STACHyperparams(learning_rate=0.1, maximize=True)
    down = STACHyperparams(learning_rate=0.1)
    p, g = np.asarray([0.0]), np.asarray([2.0])
    for rule in (SIGN, ADAMW):
        rising, falling = (step(rule, p, g, rule.init(p, hp, xp=np), hp)[0] for hp in (up, down))
        assert rising == -falling > 0


def test_sign_of_nan_and_infinities():
    x = np.asarray([np.nan, np.inf, -np.inf, -0.0])
    np.testing.assert_array_equal(sign_with_nan(x, xp=np), [np.nan, 1.0, -1.0, 0.0])


def test_complex_parts_are_two_entries():
    hp = STACHyperparams(learning_rate=0.5, sign_momentum=0.5, amsgrad=True)
    p, g = np.asarray([1 + 1j]), np.asarray([0.25 - 3j])
    signed, state = step(SIGN, p, g, SIGN.init(p, hp, xp=np), hp)
    assert signed.tolist() == [0.5 + 1.5j]
    assert state["mu"].tolist() == [0.125 - 1.5j]
    whole, state = step(ADAMW, p, g, ADAMW.init(p, hp, xp=np), hp)
    for part in ("real", "imag"):
        own_p, own_g = getattr(p, part), getattr(g, part)
        own, apart = step(ADAMW, own_p, own_g, ADAMW.init(own_p, hp, xp=np), hp)
        assert getattr(whole, part) == own
        assert {k: getattr(x, part) for k, x in state.items()} == apart


def test_inputs_are_not_mutated():
    hp = STACHyperparams(amsgrad=True)
    arrays = {name: np.ones(3) for name in ("p", "g", "mu", "nu", "nu_max")}
    for array in arrays.values():
        array.flags.writeable = False
    for rule in (SIGN, ADAMW):
        step(rule, arrays["p"], arrays["g"], arrays, hp)
    assert all(array.tolist() == [1.0] * 3 for array in arrays.values())


def test_reference_keeps_the_moments_of_a_constant_gradient():
    roles = {"a": "sign", "b": "adamw"}
    params = grads = {name: np.asarray([1.0]) for name in roles}
    optimizer = reference.STAC(roles, learning_rate=0.1, sign_lr_scale=2.0)
    state = optimizer.init(params)
    for rate in (None, None, 0.0):
        params, state = optimizer.step(params, grads, state, learning_rate=rate)
    assert state["count"] == 3
    np.testing.assert_allclose(state["mu/a"], [1 - 0.9**3], rtol=1e-12)
    np.testing.assert_allclose(state["nu/b"], [1 - 0.999**3], rtol=1e-9)
    np.testing.assert_allclose(params["a"], [0.6], rtol=1e-12)


def test_reference_refuses_other_roles():
    message = re.escape("roles['a'] must be 'sign' or 'adamw', got 'lion'")
    with pytest.raises(ValueError, match=f"^{message}$"):
        reference.STAC({"a": "lion"})


def test_reference_refuses_leaves_without_roles():
    optimizer = reference.STAC({"a": "sign"})
    message = re.escape("roles must name every leaf, got ['a'] without 'b'")
    with pytest.raises(ValueError, match=f"^{message}$"):
        optimizer.init({"a": np.ones(1), "b": np.ones(1)})
