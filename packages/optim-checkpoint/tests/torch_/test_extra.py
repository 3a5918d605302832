"""`extra` has no live object that would give types back: what it holds is kept or refused."""

import json
from collections import Counter, OrderedDict, defaultdict
from types import MappingProxyType

import numpy as np
import optim_checkpoint as oc
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optim_checkpoint import torch as ckpt


def through(folder, extra):
    ckpt.save(folder, 1, extra=extra, rng=False)
    return ckpt.restore(folder, rng=False).extra


def features(folder):
    return json.loads((folder / "step-00000001" / "manifest.json").read_bytes())["features"]


SHARED = [1]
CLASSES = {
    "OrderedDict": OrderedDict(b=1, a=[2]),
    "Counter": Counter("aab") - Counter("b"),
    "a negative count": Counter({"a": -1}),
    "defaultdict": defaultdict(list, {"x": [1]}),
    "defaultdict of nothing": defaultdict(None, {"x": 1}),
    "nested": [OrderedDict(a=Counter(x=1))],
}


@pytest.mark.parametrize("case", CLASSES)
def test_the_dicts_of_the_standard_library_keep_their_class(tmp_path, case):
    value = CLASSES[case]
    found = through(tmp_path, {"v": value})["v"]
    assert repr(found) == repr(value)
    assert type(found) is type(value)
    assert features(tmp_path) == ["exact"]
    if isinstance(value, defaultdict):
        assert found.default_factory is value.default_factory


ROWS = {
    "plain": [None, True, 3, 0.5, 1j, "a", b"b", (1,), [2], {"k": 1}],
    "long": list(range(5000)),
    "OrderedDict": OrderedDict(b=1, a=[2]),
    "Counter": Counter("aab"),
    "defaultdict": defaultdict(list, {"x": [1]}),
    "state dict": torch.nn.BatchNorm1d(3).state_dict(),
    "tensor": torch.ones(2),
    "parameter": torch.nn.Parameter(torch.ones(2)),
    "array": np.ones(3),
    "scalar": np.float32(1.5),
    "order": [np.asfortranarray(np.ones((2, 3))), torch.ones(2, 3).t()],
    "view": [np.arange(9)[::2], torch.arange(9)[::2], torch.ones(1).expand(3)],
    "twice": [SHARED, SHARED],
}


@pytest.mark.parametrize("row", ROWS)
def test_what_came_back_can_be_saved_again(tmp_path, row):
    value = ROWS[row]
    once = through(tmp_path / "1", {"v": value})
    twice = through(tmp_path / "2", once)
    assert repr(twice) == repr({"v": value})
    assert getattr(once["v"], "__dict__", {}) == getattr(value, "__dict__", {})


def test_extra_itself_keeps_its_class(tmp_path):
    found = through(tmp_path / "1", OrderedDict(b=1, a=2))
    assert repr(found) == repr(OrderedDict(b=1, a=2))
    assert type(through(tmp_path / "2", MappingProxyType({"a": 1}))) is dict
    with pytest.raises(oc.UnsupportedStateError, match=r"^extra: a .*Odd is a subclass of dict"):
        ckpt.save(tmp_path, 1, extra=Odd(a=1))


def test_a_state_dict_keeps_its_versions(tmp_path):
    state = torch.nn.BatchNorm1d(3).state_dict()
    found = through(tmp_path, {"ema": state})["ema"]
    assert type(found) is OrderedDict
    assert found._metadata == state._metadata
    assert type(found._metadata) is OrderedDict
    torch.nn.BatchNorm1d(3).load_state_dict(found)


class Odd(dict):
    pass


A, T = np.zeros(4), torch.zeros(4)
REFUSED = {
    "subclass of dict": (Odd(a=1), r"^extra\['v'\]: a .*Odd is a subclass of dict, which would"),
    "factory": (defaultdict(Odd), r"^extra\['v'\]: a defaultdict of .*Odd'> cannot be stored"),
    "big-endian": (
        np.arange(3, dtype=">i4"),
        r"^extra\['v'\]: dtype >i4 is big-endian and would come back little-endian; convert it",
    ),
    "views of an array": (
        {"a": A, "b": A[2:]},
        (
            r"^extra\['v'\]\['b'\]: shares memory with extra\['v'\]\['a'\] and would come "
            r"back apart from it; store one of them, or a copy"
        ),
    ),
    "views of a tensor": ([T[1:], T], r"^extra\['v'\]\[0\]: shares memory with extra\['v'\]\[1\]"),
    "an array and a tensor of one memory": (
        [A, torch.from_numpy(A)],
        r"^extra\['v'\]\[1\]: shares memory with extra\['v'\]\[0\] and would come back apart",
    ),
    "an array and a tensor that overlap": (
        [A[2:], torch.from_numpy(A)],
        r"^extra\['v'\]\[0\]: shares memory with extra\['v'\]\[1\]",
    ),
    "an attribute": (
        (lambda d: (setattr(d, "note", print), d)[1])(OrderedDict()),
        r"^extra\['v'\]\['note'\]: a builtins.builtin_function_or_method cannot be stored",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_lost_is_refused_by_its_path(tmp_path, case):
    value, message = REFUSED[case]
    with pytest.raises(oc.UnsupportedStateError, match=message):
        ckpt.save(tmp_path, 1, extra={"v": value})
    assert oc.steps(tmp_path) == []


def test_what_is_in_two_places_comes_back_as_one(tmp_path):
    shared, table = [1], {"a": 1}
    array, tensor = np.zeros(3), torch.zeros(3)
    long = list(range(5000))
    extra = {
        "list": [shared, shared, (shared,)],
        "dict": [table, {"b": table}],
        "array": [array, array],
        "tensor": [tensor, tensor, tensor.t()],
        "long": [long, long],
        "after": [[1], [1]],
    }
    found = through(tmp_path, extra)
    assert repr(found) == repr(extra)
    assert found["list"][0] is found["list"][1] is found["list"][2][0]
    assert found["dict"][0] is found["dict"][1]["b"]
    assert found["array"][0] is found["array"][1]
    assert found["tensor"][0].data_ptr() == found["tensor"][1].data_ptr()
    assert found["long"][0] is found["long"][1]
    assert found["after"][0] is not found["after"][1]


def test_an_array_and_a_tensor_without_a_common_element_are_kept(tmp_path):
    base = np.arange(6.0)
    found = through(tmp_path, {"a": base[::2], "t": torch.from_numpy(base)[1::2]})
    assert (found["a"].tolist(), found["t"].tolist()) == ([0, 2, 4], [1, 3, 5])


def test_a_list_in_itself_is_refused(tmp_path):
    value = []
    value.append(value)
    with pytest.raises(oc.UnsupportedStateError, match=r"^extra: cannot be read back: .*'same'"):
        ckpt.save(tmp_path, 1, extra={"v": value})


def test_sharing_that_doubles_at_every_level_takes_no_time(tmp_path):
    value = [0]
    for _ in range(50):
        value = [value, value]
    found = through(tmp_path, {"v": value})["v"]
    for _ in range(50):
        assert found[0] is found[1]
        found = found[0]
    assert found == [0]


def test_tensors_keep_class_gradient_and_axes(tmp_path):
    image = torch.randn(2, 3, 4, 5)
    extra = {
        "parameter": torch.nn.Parameter(torch.randn(2)),
        "frozen": torch.nn.Parameter(torch.arange(3), requires_grad=False),
        "gradient": torch.randn(2, requires_grad=True),
        "channels_last": image.to(memory_format=torch.channels_last),
        "transposed": torch.randn(2, 3).t(),
        "columns": list(torch.randn(4, 6).chunk(3, dim=1)),
        "expanded": torch.ones(1, 4).expand(3, 4),
        "conjugated": torch.randn(2, 3, dtype=torch.complex64).t().conj(),
    }
    found = through(tmp_path, extra)
    for name, value in extra.items():
        if name == "columns":
            assert all(map(torch.equal, found[name], value))
            continue
        got = found[name]
        assert type(got) is type(value), name
        assert got.requires_grad == value.requires_grad, name
        assert torch.equal(got.detach(), value.detach()), name
        if name != "expanded":
            assert got.stride() == value.stride(), name
        assert got.is_leaf


def test_arrays_keep_the_order_of_their_axes(tmp_path):
    base = np.arange(24).reshape(2, 3, 4)
    extra = {
        "fortran": np.asfortranarray(base),
        "moved": base.copy().transpose(1, 2, 0),
        "strided": np.arange(20)[::3],
        "reversed": np.arange(5)[::-1],
        "one row": np.asfortranarray(np.ones((1, 5))),
        "broadcast": np.broadcast_to(np.arange(3), (4, 3)),
        "flag": np.array([0, 2, 1], np.uint8).view(bool),
    }
    found = through(tmp_path, extra)
    for name, value in extra.items():
        assert found[name].dtype == value.dtype
        assert (
            (found[name].view(np.uint8) == np.ascontiguousarray(value).view(np.uint8)).all()
            if name == "flag"
            else (found[name] == value).all()
        ), name
    for name in ("fortran", "moved"):
        assert found[name].strides == extra[name].strides
    assert features(tmp_path) == ["exact"]


@pytest.mark.parametrize("rank", [33, 64, 65, 200])
def test_any_number_of_dimensions_is_kept(tmp_path, rank):
    tensor = torch.arange(6.0).reshape([1] * (rank - 2) + [2, 3])
    assert torch.equal(through(tmp_path, {"t": tensor})["t"], tensor)
    assert oc.verify(tmp_path).tensors == 1


def test_any_byte_of_a_boolean_is_kept(tmp_path):
    tensor = torch.arange(256, dtype=torch.uint8).view(torch.bool)
    found = through(tmp_path, {"t": tensor})["t"]
    assert torch.equal(found.view(torch.uint8), tensor.view(torch.uint8))


def test_plain_values_need_no_newer_reader(tmp_path):
    extra = {"t": torch.ones(2, 1), "a": np.ones((1, 2)), "l": [1, (2, {"a": None})], "n": 1.5}
    assert repr(through(tmp_path, extra)) == repr(extra)
    assert features(tmp_path) == []


def adamw():
    model = torch.nn.Linear(2, 2)
    return model, torch.optim.AdamW(model.parameters())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), np.float64(0.5)])
def test_any_number_of_a_group_is_kept(tmp_path, value):
    model, optimizer = adamw()
    optimizer.param_groups[0].update(lr=value, betas=(value, 0.5))
    ckpt.save(tmp_path, 1, model=model, optimizer=optimizer)
    model, optimizer = adamw()
    ckpt.restore(tmp_path, model=model, optimizer=optimizer)
    group = optimizer.param_groups[0]
    assert repr((group["lr"], group["betas"])) == repr((value, (value, 0.5)))


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.complex_numbers()
    | st.binary(max_size=9)
    | st.text(max_size=9)
    | st.sampled_from([np.float32(1.5), np.int64(-3), object(), {1, 2}, torch.bfloat16])
)
SHAPES = st.lists(st.integers(0, 3), max_size=4).map(tuple)
TENSORS = st.builds(
    lambda shape, dtype, flip: (
        (torch.arange(81)[: int(np.prod(shape))].reshape(shape).to(dtype))
        .permute(tuple(reversed(range(len(shape)))))
        .requires_grad_(flip and dtype.is_floating_point)
    ),
    SHAPES,
    st.sampled_from([torch.bool, torch.int16, torch.bfloat16, torch.float64, torch.complex64]),
    st.booleans(),
)
ARRAYS = st.builds(
    lambda shape, dtype, order: np.array(
        np.arange(81)[: int(np.prod(shape))].reshape(shape), dtype, order=order
    ),
    SHAPES,
    st.sampled_from(["<i4", ">i4", "f8", "?", "c8", "c16"]),
    st.sampled_from("CF"),
)
LONG = st.builds(
    lambda item, count: [item] * count,
    st.integers() | st.floats() | st.booleans() | st.text(max_size=3),
    st.sampled_from([4095, 4096, 4097]),
)
KEYS = st.text(max_size=5) | st.integers() | st.booleans() | st.none() | st.tuples(st.integers())
LEAVES = SCALARS | TENSORS | ARRAYS | LONG
VALUES = st.deferred(
    lambda: (
        LEAVES
        | LEAVES.map(lambda leaf: [leaf])
        | st.lists(VALUES, max_size=2)
        | st.lists(VALUES, max_size=2).map(lambda items: [items, items])
        | st.lists(VALUES, max_size=2).map(tuple)
        | st.dictionaries(KEYS, VALUES, max_size=2)
        | st.dictionaries(KEYS, VALUES, max_size=2).map(OrderedDict)
    )
)


def same(found, value):
    assert type(found) is type(value)
    if isinstance(value, torch.Tensor):
        assert (found.dtype, found.shape) == (value.dtype, value.shape)
        assert found.requires_grad == value.requires_grad
        assert value.numel() == 0 or found.stride() == value.stride() or 1 in value.shape
        assert torch.equal(found, value)
    elif isinstance(value, np.ndarray):
        assert (found.dtype, found.shape) == (value.dtype, value.shape)
        assert found.tobytes() == value.tobytes()
        assert found.flags.f_contiguous == value.flags.f_contiguous
    elif isinstance(value, dict):
        assert list(map(repr, found)) == list(map(repr, value))
        for one, other in zip(found.values(), value.values(), strict=True):
            same(one, other)
    elif isinstance(value, list | tuple) and len(value) < 100:
        assert len(found) == len(value)
        for one, other in zip(found, value, strict=True):
            same(one, other)
    else:
        assert repr(found) == repr(value)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("extra")
    ckpt.save(folder, 1, extra={"n": 0}, rng=False)
    return folder


@settings(deadline=None, max_examples=60)
@given(value=st.dictionaries(st.text(max_size=5), VALUES, max_size=3))
def test_a_save_that_returns_restores_and_one_that_raises_changes_nothing(place, value):
    before = sorted(path.name for path in place.iterdir())
    try:
        path = ckpt.save(place, 1, extra=value, rng=False, replace=True, keep=2)
    except oc.CheckpointError as error:
        if not isinstance(error, oc.UnsupportedStateError) or not str(error).startswith("extra"):
            raise
        after = sorted(path.name for path in place.iterdir())
        assert after == before
        return
    restored = ckpt.restore(place, rng=False)
    assert restored.path == path
    same(restored.extra, value)
