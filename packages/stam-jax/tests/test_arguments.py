"""Arguments that are written once are shown, checked and passed on in full."""

import inspect
import typing

import pytest
import stam_jax
from stam_core import STAM, STAM_LITE
from stam_jax._stam import StamOptions
from stam_jax._stam_lite import StamLiteOptions

FUNCTIONS = [stam_jax.scale_by_stam, stam_jax.stam, stam_jax.scale_by_stam_lite, stam_jax.stam_lite]
OPTIONS = [(STAM, StamOptions), (STAM_LITE, StamLiteOptions)]


def shown(function):
    return inspect.signature(function).parameters


@pytest.mark.parametrize("function", FUNCTIONS)
def test_signatures_are_in_full(function):
    kinds = {parameter.kind for parameter in shown(function).values()}
    assert kinds == {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
    assert len(shown(function)) >= 11


@pytest.mark.parametrize(
    ("function", "first"),
    [
        (stam_jax.scale_by_stam, ["b1_base", "b2", "eps"]),
        (stam_jax.stam, ["learning_rate", "b1_base", "b2", "eps", "weight_decay"]),
        (stam_jax.scale_by_stam_lite, ["b1_base", "eps"]),
        (stam_jax.stam_lite, ["learning_rate", "b1_base", "eps", "weight_decay"]),
    ],
)
def test_the_order_of_the_first_arguments_stays(function, first):
    assert list(shown(function))[: len(first)] == first


@pytest.mark.parametrize(
    ("rule", "alias"), [(STAM, stam_jax.stam), (STAM_LITE, stam_jax.stam_lite)]
)
def test_every_hyperparameter_is_an_argument_with_its_default(rule, alias):
    for name, value in vars(rule.hyperparams()).items():
        assert shown(alias)[name].default == value, name
    assert {"mask", "nonfinite", "stat_axes", "axis_name"} <= set(shown(alias))


@pytest.mark.parametrize(("rule", "options"), OPTIONS)
def test_type_checkers_know_every_hyperparameter(rule, options):
    applied_elsewhere = {"learning_rate", "weight_decay"}
    assert set(vars(rule.hyperparams())) - applied_elsewhere <= set(typing.get_type_hints(options))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stam_jax.stam(lr=0.1), r"^stam\(\) got an unexpected keyword argument 'lr'$"),
        (
            lambda: stam_jax.scale_by_stam(learning_rate=0.1),
            r"^scale_by_stam\(\) got an unexpected",
        ),
        (lambda: stam_jax.stam(0.1, learning_rate=0.1), r"^stam\(\) multiple values for .*_rate'$"),
        (
            lambda: stam_jax.scale_by_stam(0.9, 0.9, 1e-8, 0.1),
            r"^scale_by_stam\(\) too many positio",
        ),
    ],
)
def test_a_call_that_does_not_fit_is_refused_by_name(call, message):
    with pytest.raises(TypeError, match=message):
        call()
