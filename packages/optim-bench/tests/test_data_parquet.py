"""Parquet shards: the same pictures as in the original formats, and every kind of damage named."""

import importlib
import io

import numpy as np
import pyarrow
import pytest
from optim_bench.tasks import data
from optim_bench.tasks.built_in import WORKLOADS
from PIL import Image
from pyarrow import parquet

SPLITS = {"train": 48, "test": 20}


def png(picture: np.ndarray) -> dict[str, object]:
    packed = io.BytesIO()
    Image.fromarray(picture).save(packed, "png")
    return {"bytes": packed.getvalue(), "path": None}


def write(path, pictures, labels, image="image"):
    columns = {image: [png(picture) for picture in pictures], "label": list(map(int, labels))}
    parquet.write_table(pyarrow.table(columns), path)


@pytest.fixture
def arrays():
    rng = np.random.default_rng(7)
    return {
        split: (rng.integers(0, 256, (n, 28, 28), np.uint8), rng.integers(0, 10, n, np.uint8))
        for split, n in SPLITS.items()
    }


@pytest.fixture
def shards(tmp_path, arrays):
    folder = tmp_path / "mnist"
    folder.mkdir()
    for split, (images, labels) in arrays.items():
        for part, (low, high) in enumerate(((0, 12), (12, len(images)))):
            name = f"{split}-{part:05d}-of-00002.parquet"
            write(folder / name, images[low:high], labels[low:high])
    return tmp_path


def test_the_pictures_are_those_of_the_original_format(shards, arrays, tmp_path):
    for split, prefix in (("train", "train"), ("test", "t10k")):
        for content, kind in zip(arrays[split], ("images-idx3", "labels-idx1"), strict=True):
            shape = b"".join(n.to_bytes(4, "big") for n in content.shape)
            header = bytes([0, 0, 8, content.ndim]) + shape
            (tmp_path / "idx").mkdir(exist_ok=True)
            (tmp_path / "idx" / f"{prefix}-{kind}-ubyte").write_bytes(header + content.tobytes())
    build = WORKLOADS["mnist-cnn"].arrays
    ours, theirs = build(shards / "mnist"), build(tmp_path / "idx")
    for split in ("train", "val", "test"):
        for one, other in zip(
            ours.evaluation(split, 0, 0), theirs.evaluation(split, 0, 0), strict=True
        ):
            assert np.array_equal(one, other)


def test_coloured_pictures_are_cifar(tmp_path):
    rng = np.random.default_rng(7)
    for split, n in SPLITS.items():
        pictures = rng.integers(0, 256, (n, 32, 32, 3), np.uint8)
        write(tmp_path / f"{split}-00000-of-00001.parquet", pictures, np.arange(n) % 10, "img")
    task = WORKLOADS["cifar10-cnn"].arrays(tmp_path)
    inputs, targets = task.evaluation("test", 0, 0)
    assert inputs.shape == (20, 32, 32, 3)
    assert inputs[-1, 5, 6, 2] == np.float32(pictures[-1, 5, 6, 2]) / np.float32(255)
    assert targets.tolist() == [i % 10 for i in range(20)]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-20])


def without_labels(path):
    parquet.write_table(pyarrow.table({"image": [png(np.zeros((28, 28), np.uint8))]}), path)


def with_broken_picture(path):
    columns = {"image": [{"bytes": b"no picture", "path": None}], "label": [1]}
    parquet.write_table(pyarrow.table(columns), path)


DAMAGE = [
    (truncate, "is no Parquet file with images in 'image' and a column 'label'"),
    (lambda path: path.write_bytes(b""), "is no Parquet file with images"),
    (without_labels, "is no Parquet file with images in 'image' and a column 'label'"),
    (with_broken_picture, r"is no Parquet file with images in 'image' .*cannot identify image"),
    (lambda path: write(path, np.zeros((2, 28, 28), np.uint8), [3, 10]), "has a label 10; they"),
    (lambda path: write(path, np.zeros((2, 20, 20), np.uint8), [3, 4]), "images of 2 shapes"),
    (lambda path: path.unlink(), "these are not all shards of one split"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_damage_is_named_in_one_line(shards, damage, message):
    damage(shards / "mnist" / "train-00001-of-00002.parquet")
    with pytest.raises(data.DamagedDataError, match=message) as caught:
        WORKLOADS["mnist-cnn"].arrays(shards / "mnist")
    assert "train-0000" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pictures_of_the_wrong_kind_are_refused(tmp_path):
    for split in SPLITS:
        pictures = np.zeros((12, 32, 32, 3), np.uint8)
        write(tmp_path / f"{split}-00000-of-00001.parquet", pictures, np.zeros(12))
    with pytest.raises(data.DamagedDataError, match="has other pictures than gray ones"):
        WORKLOADS["mnist-cnn"].arrays(tmp_path)


def test_without_pyarrow_the_extra_is_named(shards, monkeypatch):
    load = importlib.import_module

    def absent(name, *rest):
        if name.startswith("pyarrow"):
            raise ModuleNotFoundError("No module named 'pyarrow'", name="pyarrow")
        return load(name, *rest)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(
        data.MissingDataError,
        match=r"needs pyarrow to be read: pip install 'optim-bench\[parquet\]'",
    ):
        WORKLOADS["mnist-cnn"].arrays(shards / "mnist")
