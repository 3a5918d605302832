"""Tensors, arrays, numbers and generators come back in their bits, or are refused by name."""

import random
import sys
import warnings

import ml_dtypes
import numpy as np
import optim_checkpoint as oc
import pytest
import torch
from optim_checkpoint import torch as ckpt
from optim_checkpoint._commit import Document, commit
from optim_checkpoint._shard import Entry


@pytest.mark.parametrize(
    "dtype",
    [
        torch.bool,
        torch.uint8,
        torch.int16,
        torch.uint16,
        torch.float16,
        torch.bfloat16,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
        torch.float8_e8m0fnu,
        torch.int32,
        torch.float64,
        torch.complex64,
    ],
    ids=str,
)
def test_every_dtype_comes_back_in_its_bits(tmp_path, dtype):
    raw = torch.randint(0, 2, (8, 16), dtype=torch.uint8)
    tensor = raw.to(torch.bool) if dtype == torch.bool else (raw * 37).view(dtype)
    ckpt.save(tmp_path, 1, extra={"t": tensor})
    found = ckpt.restore(tmp_path).extra["t"]
    assert (found.dtype, found.shape) == (dtype, tensor.shape)
    assert torch.equal(found.view(torch.uint8), tensor.view(torch.uint8))


def test_layouts_are_stored_by_their_logical_values(tmp_path):
    base = torch.arange(24.0).reshape(2, 3, 4)
    tensors = {
        "transposed": base.clone().transpose(0, 2),
        "strided": base[:, ::2],
        "expanded": torch.ones(1).expand(5),
        "conjugated": torch.tensor([1 + 2j]).conj(),
        "negated": torch.tensor([1 + 2j]).conj().imag,
        "channels_last": torch.randn(1, 2, 3, 4).to(memory_format=torch.channels_last),
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 5),
    }
    ckpt.save(tmp_path, 1, extra=tensors)
    found = ckpt.restore(tmp_path).extra
    for name, tensor in tensors.items():
        assert found[name].shape == tensor.shape
        assert torch.equal(found[name], tensor), name
    for name in ("transposed", "channels_last"):
        assert found[name].stride() == tensors[name].stride()


def test_extra_keeps_every_type(tmp_path):
    extra = {
        "epoch": 3,
        "best": float("inf"),
        "names": ("a", None, [1, 2.5]),
        "table": {1: b"x", (2, "y"): True},
        "array": np.arange(3, dtype=np.int16),
        "scalar": np.float32(1.5),
        "dtype": torch.bfloat16,
        "generator": np.random.default_rng(5).bit_generator.state,
    }
    ckpt.save(tmp_path, 1, extra=extra)
    found = ckpt.restore(tmp_path).extra
    assert found["array"].dtype == np.int16
    assert type(found["scalar"]) is np.float32
    assert found["array"].tolist() == [0, 1, 2]
    extra.pop("array"), found.pop("array")
    assert repr(found) == repr(extra)


def test_a_generator_in_extra_resumes(tmp_path):
    generator = np.random.default_rng(5)
    generator.random(3)
    ckpt.save(tmp_path, 1, extra={"g": generator.bit_generator.state})
    expected = generator.random(4)
    other = np.random.default_rng(0)
    other.bit_generator.state = ckpt.restore(tmp_path).extra["g"]
    assert (other.random(4) == expected).all()


def draw():
    return torch.rand(3).tolist(), random.random(), np.random.rand()  # noqa: NPY002 - the global generator


def test_global_generators_are_restored_unless_unwanted(tmp_path):
    random.gauss(0, 1)
    ckpt.save(tmp_path, 1, extra={})
    first = draw()
    second = draw()
    ckpt.restore(tmp_path, rng=False)
    assert draw() not in (first, second)
    ckpt.restore(tmp_path)
    assert draw() == first
    ckpt.save(tmp_path, 2, rng=False, extra={})
    expected = draw()
    ckpt.restore(tmp_path, 1)
    draw()
    ckpt.restore(tmp_path, 2)
    assert draw() == expected


with warnings.catch_warnings():
    # Torch calls all nested tensors a prototype.
    warnings.simplefilter("ignore")
    NESTED = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"a": [object()]}, r"^extra\['a'\]\[0\]: a builtins.object cannot be stored"),
        ({"t": torch.zeros(1, dtype=torch.complex128)}, r"^extra\['t'\]: dtype torch.complex128"),
        ({"t": torch.eye(2).to_sparse()}, r"^extra\['t'\]: layout torch.sparse_coo"),
        ({"t": torch.empty(2, device="meta")}, r"^extra\['t'\]: is on the meta device"),
        ({"t": np.array(["a"])}, r"^extra\['t'\]: dtype <U1 has no equivalent"),
        ({"t": np.zeros(2, np.complex128)}, r"^extra\['t'\]: dtype complex128 has no"),
        ({"t": np.ma.array([1, 2], mask=[0, 1])}, r"^extra\['t'\]: a MaskedArray is an array sub"),
        ({"t": NESTED}, r"^extra\['t'\]: layout torch.strided, dtype .* only dense tensors"),
    ],
    ids=["object", "complex128", "sparse", "meta", "text", "numpy", "masked", "nested"],
)
def test_what_cannot_be_stored_is_named(tmp_path, extra, message):
    with pytest.raises(oc.UnsupportedStateError, match=message):
        ckpt.save(tmp_path, 1, extra=extra)
    assert oc.steps(tmp_path) == []


def test_a_manifest_that_gives_one_tensor_two_kinds_is_refused(tmp_path):
    """Only one of the two would be read, the other would be whatever the memory held."""
    entry = Entry("x", "F32", (2,), lambda: memoryview(bytes(8)))
    both = {"list": [{"tensor": "x"}, {"ndarray": "x"}]}
    sections = {"train": {"extra": {"dict": [[{"str": "a"}, both]]}}}
    commit(tmp_path, Document(1, {"name": "torch"}, sections, {"train": [entry]}))
    with pytest.raises(oc.CorruptCheckpointError, match="tensor 'x': stands for two kinds"):
        ckpt.restore(tmp_path)


def test_a_numpy_type_that_nothing_has_registered_is_not_damage(tmp_path, monkeypatch):
    ckpt.save(tmp_path, 1, extra={"a": np.ones(2, ml_dtypes.bfloat16)})
    monkeypatch.delitem(sys.modules, "ml_dtypes")
    with pytest.raises(
        oc.IncompatibleCheckpointError, match="is bfloat16, which is a NumPy array only after `imp"
    ):
        ckpt.restore(tmp_path)
