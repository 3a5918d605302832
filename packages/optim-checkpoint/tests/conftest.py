"""Documents and folders that need no framework."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from optim_checkpoint._collect import Collector, Staging, read_staged
from optim_checkpoint._commit import Document, commit
from optim_checkpoint._numpy import bytes_of, dtype_name
from optim_checkpoint._select import Chosen, choose

Arrays = dict[str, np.ndarray]


def arrays_of(step: int, size: int = 300) -> Arrays:
    """Return arrays that depend on every bit of `step`."""
    rng = np.random.default_rng(step)
    return {
        "a.weight": rng.standard_normal((size // 3, 3)).astype(np.float32),
        "a.bias": rng.standard_normal(size),
        "count": np.array(step, np.int64),
        "empty": np.zeros((0, 4), np.float16),
        "flags": rng.integers(0, 2, 37).astype(bool),
        "words": rng.integers(0, 255, 64).astype(np.uint8),
    }


def document_of(step: int, size: int = 300) -> Document:
    """Return a document with `arrays_of` in the model part and one optimizer tensor."""
    parts = {"model": Collector(), "optim": Collector(), "train": Collector()}
    arrays = arrays_of(step, size)
    for name, array in arrays.items():
        parts["model"].add(
            name, dtype_name(array.dtype, name), array.shape, lambda array=array: bytes_of(array)
        )
    moment = arrays["a.weight"] * 2
    parts["optim"].add(
        "state.a.weight.mu", "F32", moment.shape, lambda moment=moment: bytes_of(moment)
    )
    return Document(
        step,
        {"name": "numpy", "versions": {}},
        {"optimizer": {"kind": "none"}, "train": {"extra": {"int": str(step)}}},
        {part: collector.entries for part, collector in parts.items()},
    )


def load_arrays(path: Path, step: int | None = None) -> Chosen[Arrays]:
    """Read the model part of the newest generation that verifies."""

    def read(generation) -> Arrays:
        staging = Staging.of(generation, "model")
        arrays = {key: staging.array(key) for key in staging.tensors}
        read_staged(generation, staging)
        return arrays

    return choose(path, step, read)


def assert_is(arrays: Arrays, step: int, size: int = 300) -> None:
    """Assert that arrays are those of `step`, bit for bit."""
    expected = arrays_of(step, size)
    assert arrays.keys() == expected.keys()
    for name, array in expected.items():
        assert arrays[name].dtype == array.dtype
        assert arrays[name].tobytes() == array.tobytes()


@pytest.fixture
def make_document() -> Callable[..., Document]:
    return document_of


@pytest.fixture
def load() -> Callable[..., Chosen[Arrays]]:
    return load_arrays


@pytest.fixture
def check() -> Callable[..., None]:
    return assert_is


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A folder with the steps 1 and 2."""
    for step in (1, 2):
        commit(tmp_path / "run", document_of(step))
    return tmp_path / "run"
