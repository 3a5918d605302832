"""Every range of every hyperparameter, and the words of its refusal."""

import dataclasses
import math

import numpy as np
import pytest
from stam_core import STAMHyperparams, STAMLiteHyperparams

UNIT = "in the open interval (0, 1)"
POSITIVE = "> 0 and finite"
NON_NEGATIVE = ">= 0 and finite"
TINY = ">= 1e-30 and finite"

# class, name, bad values, the range as the message words it, default
NUMBERS = [
    (STAMHyperparams, "learning_rate", (0.0, -1.0, math.inf, math.nan), POSITIVE, 0.001),
    (STAMHyperparams, "b1_base", (0.0, 1.0, -0.1, math.nan), UNIT, 0.9),
    (STAMHyperparams, "b2", (0.0, 1.0, 2), UNIT, 0.999),
    (STAMHyperparams, "eps", (-1e-9, math.inf), NON_NEGATIVE, 1e-08),
    (STAMHyperparams, "weight_decay", (-0.1, math.nan), NON_NEGATIVE, 0.01),
    (STAMHyperparams, "adapt_strength", (-0.01, 0.51, math.nan), "in [0, 0.5]", 0.2),
    (STAMHyperparams, "tau_decay", (0.0, 1.0), UNIT, 0.99),
    (STAMHyperparams, "fallback_threshold", (0.0, -1.0, math.inf), POSITIVE, 100.0),
    (STAMHyperparams, "variance_eps", (0.0, 1e-31, math.inf), TINY, 1e-08),
    (STAMLiteHyperparams, "learning_rate", (0.0, -1.0), POSITIVE, 0.001),
    (STAMLiteHyperparams, "b1_base", (0.0, 1.0), UNIT, 0.9),
    (STAMLiteHyperparams, "eps", (0.0, -1.0, math.inf), TINY, 1e-08),
    (STAMLiteHyperparams, "weight_decay", (-0.1,), NON_NEGATIVE, 0.01),
    (STAMLiteHyperparams, "adapt_strength", (-0.01, 0.51), "in [0, 0.5]", 0.2),
    (STAMLiteHyperparams, "moment_decay", (0.0, 1.0), UNIT, 0.99),
    (STAMLiteHyperparams, "beta1_update_interval", (0, -2), ">= 1", 5),
]
ROWS = [(kind, name, bad, *rest) for kind, name, bads, *rest in NUMBERS for bad in bads]


@pytest.mark.parametrize(("kind", "name", "bad", "text", "default"), ROWS)
def test_a_number_out_of_range_is_refused(kind, name, bad, text, default):
    with pytest.raises(ValueError, match=r".") as refusal:
        kind(**{name: bad})
    assert str(refusal.value) == f"{name} must be {text}, got {bad!r}: the default is {default!r}"


@pytest.mark.parametrize(("kind", "name", "bads", "text", "default"), NUMBERS)
def test_the_default_is_the_one_in_the_message(kind, name, bads, text, default):
    assert getattr(kind(), name) == default


OF_ANOTHER_TYPE = [
    (STAMHyperparams, "b2", "0.9", "a number, got '0.9' (str): the default is 0.999"),
    (STAMHyperparams, "eps", None, "a number, got None (NoneType): the default is 1e-08"),
    (STAMHyperparams, "weight_decay", True, "a number, got True (bool): the default is 0.01"),
    (
        STAMHyperparams,
        "stat_sample",
        2.5,
        "an integer or None, got 2.5 (float): the default is None",
    ),
    (
        STAMLiteHyperparams,
        "beta1_update_interval",
        2.5,
        "an integer, got 2.5 (float): the default is 5",
    ),
]


@pytest.mark.parametrize(("kind", "name", "bad", "wanted"), OF_ANOTHER_TYPE)
def test_a_value_of_another_type_is_refused(kind, name, bad, wanted):
    with pytest.raises(TypeError, match=r".") as refusal:
        kind(**{name: bad})
    assert str(refusal.value) == f"{name} must be {wanted}"


@pytest.mark.parametrize("kind", [STAMHyperparams, STAMLiteHyperparams])
def test_sample_sizes_below_one_are_refused(kind):
    with pytest.raises(ValueError, match=r"^stat_sample must be >= 1, got 0: the default is None$"):
        kind(stat_sample=0)


def test_choices_are_spelled_out():
    with pytest.raises(
        ValueError, match=r"^statistics must be 'published' or 'corrected', got 'debiased'$"
    ):
        STAMHyperparams(statistics="debiased")
    with pytest.raises(
        ValueError, match=r"^parity must be None or 'stam-optimizer-0.1.0', got '0.2'$"
    ):
        STAMHyperparams(parity="0.2")


@pytest.mark.parametrize("option", [{"statistics": "corrected"}, {"stat_sample": 8}])
def test_parity_refuses_what_the_package_did_not_have(option):
    with pytest.raises(ValueError, match=r"leave those two at their defaults, or leave out parity"):
        STAMHyperparams(parity="stam-optimizer-0.1.0", **option)
    if "stat_sample" in option:
        with pytest.raises(ValueError, match=r"leave out one of the two"):
            STAMLiteHyperparams(parity="stam-optimizer-0.1.0", **option)


@pytest.mark.parametrize("name", ["learning_rate", "weight_decay", "adapt_strength"])
def test_schedules_pass_where_they_mean_something(name):
    schedule = float
    assert getattr(STAMHyperparams(**{name: schedule}), name) is schedule
    with pytest.raises(TypeError, match="b2 must be a number"):
        STAMHyperparams(b2=schedule)


def test_arrays_pass_unchecked_because_tracers_have_no_value():
    outside = np.asarray(7.0)
    assert STAMHyperparams(b1_base=outside).b1_base is outside


def test_hyperparameters_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        STAMHyperparams().b2 = 0.5
