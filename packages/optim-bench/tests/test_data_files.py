"""Full-size formats: tiny valid files train, and every kind of damage is named."""

import gzip
import struct

import numpy as np
import pytest
from optim_bench.executors.train import train
from optim_bench.records import RunSpec
from optim_bench.tasks import data
from optim_bench.tasks.built_in import WORKLOADS


def idx(array: np.ndarray) -> bytes:
    shape = b"".join(struct.pack(">i", n) for n in array.shape)
    return bytes([0, 0, 8, array.ndim]) + shape + array.astype(np.uint8).tobytes()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture
def mnist(tmp_path, rng):
    for prefix, n in (("train", 48), ("t10k", 20)):
        images, labels = rng.integers(0, 256, (n, 28, 28)), rng.integers(0, 10, n)
        (tmp_path / f"{prefix}-images-idx3-ubyte").write_bytes(idx(images))
        (tmp_path / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    return tmp_path


@pytest.fixture
def cifar(tmp_path, rng):
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for name in WORKLOADS["cifar10-cnn"].files:
        records = rng.integers(0, 256, (24, 3073), dtype=np.uint8)
        records[:, 0] %= 10
        (folder / name).write_bytes(records.tobytes())
    return tmp_path


@pytest.fixture
def tokens(tmp_path, rng):
    header = np.zeros(256, "<i4")
    header[:3] = 20240520, 1, 3000
    content = rng.integers(0, 50_257, 3000).astype("<u2")
    (tmp_path / "train.bin").write_bytes(header.tobytes() + content.tobytes())
    (tmp_path / "val.bin").write_bytes(content[:400].tobytes())
    return tmp_path


def make_spec(workload: str, framework: str, steps: int = 3) -> RunSpec:
    rate = {"learning_rate": 1e-3}
    return RunSpec(workload, 1, framework, "adamw", rate, 0, steps, "cosine")


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_tiny_image_files_train_in_both_frameworks(mnist, framework):
    record = train(make_spec("mnist-cnn", framework), data_dir=mnist)

    assert record.status == "ok"
    assert record.parameters == 16 * 9 + 16 + 32 * 16 * 9 + 32 + 64 * 32 * 14 * 14 + 64 + 650


@pytest.mark.slow
def test_both_frameworks_see_the_same_colours(cifar):
    left, right = (
        train(make_spec("cifar10-cnn", framework, steps=1), data_dir=cifar)
        for framework in ("jax", "torch")
    )

    assert left.curve["train_loss"][0] == pytest.approx(right.curve["train_loss"][0], rel=1e-5)
    assert left.metrics["test_loss"] == pytest.approx(right.metrics["test_loss"], rel=1e-3)


def test_a_twelfth_of_the_training_file_is_held_out(mnist):
    splits = WORKLOADS["mnist-cnn"].arrays(mnist).splits

    assert {name: len(images) for name, (images, _) in splits.items()} == {
        "train": 44,
        "val": 4,
        "test": 20,
    }
    assert splits["train"][0].max() <= 1.0


def test_token_files_with_and_without_header_are_windows_of_the_file(tokens):
    task = WORKLOADS["gpt2-tokens"].arrays(tokens)
    inputs, targets = next(task.chunks(0, [2]))

    assert {name: len(sequence) for name, sequence in task.tokens.items()} == {
        "train": 3000,
        "val": 200,
        "test": 200,
    }
    assert inputs.shape == targets.shape == (2, 32, 64)
    assert np.array_equal(inputs[..., 1:], targets[..., :-1])
    assert inputs[0, 0].astype("<u2").tobytes() in (tokens / "train.bin").read_bytes()
    assert task.initial(0)["head.weight"].shape == (50_257, 64)


def test_idx_is_read_as_it_was_written(tmp_path, rng):
    array = rng.integers(0, 256, (3, 4, 5)).astype(np.uint8)
    (tmp_path / "a").write_bytes(idx(array))

    assert np.array_equal(data.read_idx(tmp_path / "a"), array)


def test_cifar_planes_become_channels(tmp_path):
    red = np.full((32, 32), 10, np.uint8)
    red[5, 6] = 99
    record = bytes([7]) + red.tobytes() + bytes([20]) * 1024 + bytes([30]) * 1024
    (tmp_path / "b").write_bytes(record)
    images, labels = data.read_cifar10(tmp_path / "b")

    assert images.shape == (1, 32, 32, 3)
    assert images[0, 5, 6].tolist() == [99, 20, 30]
    assert images[0, 6, 5].tolist() == [10, 20, 30]
    assert labels.tolist() == [7]


GOOD = idx(np.arange(6).reshape(2, 3))


@pytest.mark.parametrize(
    ("reader", "content", "message"),
    [
        (data.read_idx, b"", "starts with ; an IDX file of bytes starts with 000008"),
        (data.read_idx, b"\x00\x00\x0d\x01" + b"x" * 8, "starts with 00000d01; an IDX file"),
        (data.read_idx, GOOD[:-1], r"has 17 bytes; its header \(2, 3\) asks for 18"),
        (data.read_idx, GOOD + b"x", r"has 19 bytes; its header \(2, 3\) asks for 18"),
        (
            data.read_idx,
            b"\x00\x00\x08\x02\x00\x00\x00\x02",
            r"has 8 bytes; its header \(2,\) asks",
        ),
        (data.read_idx, gzip.compress(GOOD, mtime=0)[:-4], "is a damaged gzip file: "),
        (data.read_cifar10, b"", "has 0 bytes; CIFAR-10's binary records have 3073 each"),
        (data.read_cifar10, b"\x01" * 3072, "has 3072 bytes; CIFAR-10's binary records have 3073"),
        (data.read_cifar10, b"\x0a" * 3073, "has a label 10; CIFAR-10's are 0 to 9"),
        (data.read_tokens, b"abc", "has 3 bytes; uint16 tokens need an even number"),
        (
            data.read_tokens,
            struct.pack("<256i", 20240520, 2, *[0] * 254),
            "token header with version 2; version 1 is supported",
        ),
        (
            data.read_tokens,
            struct.pack("<256i", 20240520, 1, 5, *[0] * 253) + b"ab" * 4,
            "holds 4 tokens; its header says 5",
        ),
    ],
)
def test_damage_is_named(tmp_path, reader, content, message):
    path = tmp_path / "file"
    path.write_bytes(content)

    with pytest.raises(data.DamagedDataError, match=message) as caught:
        reader(path)
    assert str(caught.value).startswith(str(path))


def test_images_without_their_labels_are_refused(mnist):
    (mnist / "t10k-labels-idx1-ubyte.gz").write_bytes(idx(np.zeros(19)))

    with pytest.raises(data.DamagedDataError, match="t10k: 20 images but 19 labels"):
        train(make_spec("mnist-cnn", "torch"), data_dir=mnist)


def test_labels_in_the_place_of_images_are_refused(mnist):
    (mnist / "train-images-idx3-ubyte").write_bytes(idx(np.zeros(48)))

    with pytest.raises(data.DamagedDataError, match="idx3-ubyte has 1 axes; 3 are expected"):
        train(make_spec("mnist-cnn", "torch"), data_dir=mnist)


def test_a_text_shorter_than_a_window_is_refused(tokens):
    (tokens / "val.bin").write_bytes(b"ab" * 100)

    with pytest.raises(
        data.DamagedDataError, match="val split has 50 tokens; at least 66 are need"
    ):
        train(make_spec("gpt2-tokens", "torch"), data_dir=tokens)


def test_a_missing_folder_or_file_says_what_to_bring(tmp_path):
    with pytest.raises(
        data.MissingDataError,
        match=r"^train-images-idx3-ubyte is needed \(the MNIST .*\); say where it lies with --data",
    ):
        train(make_spec("mnist-cnn", "torch"))
    with pytest.raises(
        data.MissingDataError, match=r"holds no data_batch_1\.bin or data_batch_1\.b"
    ):
        train(make_spec("cifar10-cnn", "torch"), data_dir=tmp_path)
