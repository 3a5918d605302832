"""Full-size workloads on files that the user brings: MNIST, CIFAR-10, token files.

MNIST and CIFAR-10 are read from Parquet shards where the data folder holds them, and otherwise in
their original formats; the pictures, and so the numbers of a run, are the same.
"""

import functools
from pathlib import Path

import numpy as np

from optim_bench.tasks import data
from optim_bench.tasks.built_in import _layers, _shakespeare
from optim_bench.tasks.built_in._sampled import SampledTask
from optim_bench.tasks.built_in._shakespeare import TextTask
from optim_bench.tasks.built_in._workload import Array, Workload

MNIST_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
CIFAR_FILES = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")
TOKEN_FILES = ("train.bin", "val.bin")
_FROM_MNIST = "the MNIST or Fashion-MNIST distribution: optim-bench data fetch mnist --data-dir DIR"
_FROM_CIFAR = "the binary version of CIFAR-10: optim-bench data fetch cifar10 --data-dir DIR"
_FROM_GPT2 = "a GPT-2 tokenizer's output as uint16, for example nanoGPT's prepare.py"
GPT2_SYMBOLS = 50_257
# The validation split is the last twelfth of the training file, as large as MNIST's 5,000.
_HELD_OUT = 12


def _cnn_parameters(rng: np.random.Generator, side: int, channels: int) -> dict[str, Array]:
    half = (side + 1) // 2
    return {
        **_layers.convolution(rng, "conv1", channels, 16, 3),
        **_layers.convolution(rng, "conv2", 16, 32, 3),
        **_layers.dense(rng, "fc1", 32 * half * half, 64),
        **_layers.dense(rng, "fc2", 64, 10, gain=1.0),
    }


def _image_task(
    train: tuple[Array, Array], test: tuple[Array, Array], names: tuple[str, str]
) -> SampledTask:
    for (images, labels), name in zip((train, test), names, strict=True):
        if len(images) != len(labels):
            raise data.DamagedDataError(
                f"{name}: {len(images)} images but {len(labels)} labels; the files do not belong "
                "together"
            )
    images, labels = _scaled(train)
    cut = len(images) - len(images) // _HELD_OUT
    side, channels = images.shape[1], images.shape[3] if images.ndim == 4 else 1
    return SampledTask(
        {
            "train": (images[:cut], labels[:cut]),
            "val": (images[cut:], labels[cut:]),
            "test": _scaled(test),
        },
        batch=128,
        parameters=functools.partial(_cnn_parameters, side=side, channels=channels),
    )


def _scaled(split: tuple[Array, Array]) -> tuple[Array, Array]:
    images, labels = split
    return images.astype(np.float32) / np.float32(255), labels.astype(np.int32)


def _parquet_task(data_dir: Path | None, image: str, axes: int) -> SampledTask | None:
    shards = [data.find_shards(data_dir, split) for split in ("train", "test")]
    if not all(shards):
        return None
    train, test = (data.read_image_parquet(paths, image, 10) for paths in shards)
    for (images, _), paths in zip((train, test), shards, strict=True):
        if images.ndim != axes:
            kind = "gray" if axes == 3 else "coloured"
            raise data.DamagedDataError(f"{paths[0]} has other pictures than {kind} ones")
    return _image_task(train, test, ("train", "test"))


@functools.lru_cache(maxsize=1)
def _mnist_task(data_dir: Path | None) -> SampledTask:
    if (task := _parquet_task(data_dir, "image", 3)) is not None:
        return task
    paths = [data.find(data_dir, name, _FROM_MNIST) for name in MNIST_FILES]
    arrays = [data.read_idx(path) for path in paths]
    for array, path, axes in zip(arrays, paths, (3, 1, 3, 1), strict=True):
        if array.ndim != axes:
            raise data.DamagedDataError(f"{path} has {array.ndim} axes; {axes} are expected")
    return _image_task((arrays[0], arrays[1]), (arrays[2], arrays[3]), ("train", "t10k"))


@functools.lru_cache(maxsize=1)
def _cifar_task(data_dir: Path | None) -> SampledTask:
    if (task := _parquet_task(data_dir, "img", 4)) is not None:
        return task
    batches = [data.read_cifar10(data.find(data_dir, name, _FROM_CIFAR)) for name in CIFAR_FILES]
    images, labels = zip(*batches[:-1], strict=True)
    train = (np.concatenate(images), np.concatenate(labels))
    return _image_task(train, batches[-1], ("train", "test"))


@functools.lru_cache(maxsize=1)
def _token_task(data_dir: Path | None) -> TextTask:
    paths = [data.find(data_dir, name, _FROM_GPT2) for name in TOKEN_FILES]
    train, held_out = (data.read_tokens(path) for path in paths)
    half = len(held_out) // 2
    tokens = {"train": train, "val": held_out[:half], "test": held_out[half:]}
    for split, sequence in tokens.items():
        if len(sequence) < _shakespeare.CONTEXT + 2:
            raise data.DamagedDataError(
                f"{data_dir}: the {split} split has {len(sequence)} tokens; at least "
                f"{_shakespeare.CONTEXT + 2} are needed"
            )
    return TextTask(tokens, symbols=GPT2_SYMBOLS, batch=32)


MNIST_CNN = Workload(
    name="mnist-cnn",
    version=1,
    title="MNIST or Fashion-MNIST from IDX files, two convolutions and two dense layers",
    kind="real",
    model="cnn",
    loss="cross_entropy",
    metrics=("val_accuracy", "test_accuracy"),
    steps={"smoke": 40, "quick": 500, "standard": 4000, "full": 20_000},
    batch=128,
    arrays=_mnist_task,
    files=MNIST_FILES,
    licence="that of the files you bring",
    unrolled=False,
)

CIFAR10_CNN = Workload(
    name="cifar10-cnn",
    version=1,
    title="CIFAR-10 from its binary files, two convolutions and two dense layers",
    kind="real",
    model="cnn",
    loss="cross_entropy",
    metrics=("val_accuracy", "test_accuracy"),
    steps={"smoke": 40, "quick": 500, "standard": 8000, "full": 40_000},
    batch=128,
    arrays=_cifar_task,
    files=CIFAR_FILES,
    licence="that of the files you bring",
    unrolled=False,
)

GPT2_TOKENS = Workload(
    name="gpt2-tokens",
    version=1,
    title="Next token of files in GPT-2's vocabulary, a two-layer pre-norm transformer",
    kind="real",
    model="transformer",
    loss="cross_entropy",
    metrics=("val_accuracy", "test_accuracy"),
    steps={"smoke": 20, "quick": 300, "standard": 4000, "full": 40_000},
    batch=32,
    arrays=_token_task,
    files=TOKEN_FILES,
    licence="that of the files you bring",
)
