import collections
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optim_checkpoint import CorruptCheckpointError, UnsupportedStateError
from optim_checkpoint._json import Limits, dumps, loads
from optim_checkpoint._typed import decode, encode

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.complex_numbers()
    | st.binary(max_size=20)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
)
KEYS = st.integers() | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=4)
    ),
    max_leaves=12,
)


def through_json(value):
    raw = dumps(encode(value, "x"))
    return decode(loads(raw, file="m", limits=Limits(1 << 20, 300)), "m")


@given(VALUES)
def test_every_value_comes_back_in_type_and_bits(value):
    # repr tells -0.0 from 0.0, a tuple from a list and the order of a dict; nan equals nan.
    assert repr(through_json(value)) == repr(value)


@pytest.mark.parametrize("value", [math.inf, -math.inf, 5e-324, 1.7976931348623157e308, -0.0])
def test_floats_at_the_edge_are_exact(value):
    assert through_json(value).hex() == value.hex()


def test_a_subclass_of_dict_is_stored_as_a_dict():
    assert through_json(collections.Counter({3: 2})) == {3: 2}


class Custom:
    pass


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Custom(), r"^s\['a'\]: a .*Custom cannot be stored; convert it"),
        (print, r"^s\['a'\]: a builtins.builtin_function_or_method cannot be stored"),
        ({1, 2}, r"^s\['a'\]: a builtins.set cannot be stored"),
        ("\ud800", r"^s\['a'\]: the text '\\ud800' is not Unicode"),
        (1 << 20000, r"^s\['a'\]: an integer of more than 12288 bits"),
        ({Custom(): 1}, r"^s\['a'\]\[.*\]: a key of type Custom is not stored"),
    ],
    ids=["object", "function", "set", "surrogate", "integer", "key"],
)
def test_what_cannot_be_stored_is_named_by_its_path(value, message):
    with pytest.raises(UnsupportedStateError, match=message):
        encode({"a": value}, "s")


def test_a_value_that_contains_itself_is_refused():
    value = []
    value.append(value)
    with pytest.raises(UnsupportedStateError, match="nested more than 60 deep"):
        encode(value, "s")


HOSTILE_TYPED = [
    None,
    1,
    [],
    {},
    {"int": 1},
    {"int": "01"},
    {"int": "1e3"},
    {"int": "١"},
    {"int": "9" * 5000},
    {"float": "nan(1)"},
    {"float": "0x1p99999"},
    {"float": "1.5"},
    {"float": "0x1.8p+1000000000000000000000"},
    {"none": 0},
    {"bool": 1},
    {"str": 1},
    {"str": "a", "int": "1"},
    {"bytes": "0g"},
    {"bytes": "abc"},
    {"complex": ["0x1.0p+0"]},
    {"complex": [1, 2]},
    {"list": {"int": "1"}},
    {"dict": [[{"int": "1"}]]},
    {"dict": [[{"list": []}, {"int": "1"}]]},
    {"dict": [[{"int": "1"}, {"int": "1"}], [{"int": "1"}, {"int": "2"}]]},
    {"tensor": "x"},
    {"__class__": "os.system"},
]


@pytest.mark.parametrize("typed", HOSTILE_TYPED, ids=repr)
def test_malformed_typed_values_are_refused(typed):
    with pytest.raises(CorruptCheckpointError):
        decode(typed, "m")


def test_deep_typed_values_are_refused():
    typed = {"int": "1"}
    for _ in range(80):
        typed = {"list": [typed]}
    with pytest.raises(CorruptCheckpointError, match="nested more than 60 deep"):
        decode(typed, "m")
