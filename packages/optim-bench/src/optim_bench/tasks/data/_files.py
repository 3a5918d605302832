"""Readers of full-size data sets in their original formats; nothing here downloads anything."""

import gzip
import importlib
import io
from pathlib import Path
from typing import Any

import numpy as np

from optim_bench.tasks.data._vendored import Array, DamagedDataError

CIFAR_SIDE, CIFAR_CLASSES = 32, 10
_CIFAR_RECORD = 1 + 3 * CIFAR_SIDE**2
_TOKEN_MAGIC, _TOKEN_VERSION, _TOKEN_HEADER = 20240520, 1, 256
_IDX_BYTES, _GZIP_MAGIC = 0x08, b"\x1f\x8b"


class MissingDataError(ValueError):
    """A run needs a file that is not in the data folder."""


def find(data_dir: Path | None, name: str, origin: str) -> Path:
    """Return the path of `name`, or of `name.gz`, in the data folder or one of its subfolders.

    Args:
        data_dir: the folder, or `None` where the user gave none.
        name: file name without `.gz`.
        origin: where such a file comes from, for the message.

    Raises:
        MissingDataError: there is no folder, or no such file; the message says what to put where.
    """
    if data_dir is None:
        raise MissingDataError(f"{name} is needed ({origin}); say where it lies with --data-dir")
    for candidate in (name, f"{name}.gz"):
        for path in (data_dir / candidate, *sorted(data_dir.glob(f"*/{candidate}"))):
            if path.is_file():
                return path
    raise MissingDataError(f"{data_dir} holds no {name} or {name}.gz; it comes from {origin}")


def find_shards(data_dir: Path | None, split: str) -> list[Path]:
    """Return the Parquet shards of a split, `split-00000-of-00001.parquet` and so on, in order.

    Args:
        data_dir: the data folder; its subfolders are searched, too.
        split: for example "train".

    Raises:
        DamagedDataError: the names say that a shard is missing.
    """
    if data_dir is None:
        return []
    found = {p.name: p for p in sorted(data_dir.glob(f"**/{split}-?????-of-?????.parquet"))}
    counts = {name.rpartition(".")[0].rpartition("-")[2] for name in found}
    if found and counts != {f"{len(found):05d}"}:
        raise DamagedDataError(
            f"{data_dir} holds {', '.join(sorted(found))}; these are not all shards of one split"
        )
    return [found[name] for name in sorted(found)]


def read_idx(path: Path) -> Array:
    """Read an IDX file of unsigned bytes, gzipped or not (the format of MNIST and Fashion-MNIST).

    Four bytes (0, 0, type, number of axes), one big-endian int32 for each axis, then the entries.

    Raises:
        DamagedDataError: the file is no such file, or is cut off or too long.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "labels"
        >>> _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9]))
        >>> read_idx(path).tolist()
        [7, 8, 9]
    """
    content = _read(path)
    if len(content) < 4 or content[:3] != bytes([0, 0, _IDX_BYTES]) or not content[3]:
        raise DamagedDataError(
            f"{path} starts with {content[:4].hex()}; an IDX file of bytes starts with 000008"
        )
    start = 4 + 4 * content[3]
    shape = tuple(int(n) for n in np.frombuffer(content[4:start], ">i4"))
    expected = start + int(np.prod(shape, dtype=np.int64))
    if len(shape) < content[3] or len(content) != expected:
        raise DamagedDataError(
            f"{path} has {len(content)} bytes; its header {shape} asks for {expected}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def read_cifar10(path: Path) -> tuple[Array, Array]:
    """Read one batch of CIFAR-10's binary version: images (n, 32, 32, 3) and labels (n,), uint8.

    Each record is a label and three planes (red, green, blue) of 1,024 bytes. The other version of
    CIFAR-10 is a pickle, which can run code when it is read, and is not supported.

    Raises:
        DamagedDataError: the size is no whole number of records, or a label is above 9.
    """
    content = np.frombuffer(_read(path), np.uint8)
    if not len(content) or len(content) % _CIFAR_RECORD:
        raise DamagedDataError(
            f"{path} has {len(content)} bytes; CIFAR-10's binary records have {_CIFAR_RECORD} each"
        )
    records = content.reshape(-1, _CIFAR_RECORD)
    labels = records[:, 0]
    if int(labels.max()) >= CIFAR_CLASSES:
        raise DamagedDataError(f"{path} has a label {int(labels.max())}; CIFAR-10's are 0 to 9")
    planes = records[:, 1:].reshape(-1, 3, CIFAR_SIDE, CIFAR_SIDE)
    return planes.transpose(0, 2, 3, 1), labels


def read_tokens(path: Path) -> Array:
    """Map a file of uint16 tokens, with or without the 256-int32 header of the GPT speed runs.

    Args:
        path: nanoGPT's `train.bin` (bare tokens), or a shard that starts with the magic number
            20240520, version 1 and the number of tokens.

    Returns:
        The tokens, read from disk as they are used.

    Raises:
        DamagedDataError: an odd size, another version, or another length than the header says.
    """
    size = path.stat().st_size
    if size % 2 or size < 4:
        raise DamagedDataError(f"{path} has {size} bytes; uint16 tokens need an even number")
    header = np.fromfile(path, "<i4", count=min(_TOKEN_HEADER, size // 4))
    if header[0] != _TOKEN_MAGIC:
        return np.memmap(path, "<u2", "r")
    if len(header) < _TOKEN_HEADER or header[1] != _TOKEN_VERSION:
        found = f"version {header[1]}" if len(header) > 1 else "no version"
        raise DamagedDataError(f"{path} has a token header with {found}; version 1 is supported")
    tokens = np.memmap(path, "<u2", "r", offset=4 * _TOKEN_HEADER)
    if len(tokens) != header[2]:
        raise DamagedDataError(f"{path} holds {len(tokens)} tokens; its header says {header[2]}")
    return tokens


def _read(path: Path) -> bytes:
    content = path.read_bytes()
    if not content.startswith(_GZIP_MAGIC):
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, OSError) as error:
        raise DamagedDataError(f"{path} is a damaged gzip file: {error}") from error


def read_image_parquet(paths: list[Path], image: str, classes: int) -> tuple[Array, Array]:
    """Read the shards of one split: images (n, side, side[, 3]) and labels (n,), uint8.

    Args:
        paths: the shards, in order.
        image: name of the image column, whose entries are `{"bytes": an encoded picture, ...}`;
            beside it stands a column `label`.
        classes: labels have to be below it.

    Raises:
        MissingDataError: pyarrow and Pillow are not installed.
        DamagedDataError: a file is no Parquet file, lacks a column, or holds something else.
    """
    try:
        parquet = importlib.import_module("pyarrow.parquet")
        pillow = importlib.import_module("PIL.Image")
    except ModuleNotFoundError as error:
        raise MissingDataError(
            f"{paths[0]} needs {error.name} to be read: pip install 'optim-bench[parquet]'"
        ) from error
    images: list[Array] = []
    labels: list[int] = []
    for path in paths:
        try:
            table = parquet.read_table(path, columns=[image, "label"])
            found = table.column(image).to_pylist()
            marks = table.column("label").to_pylist()
            images += [_picture(pillow, entry) for entry in found]
        except Exception as error:
            line = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DamagedDataError(
                f"{path} is no Parquet file with images in {image!r} and a column 'label' ({line})"
            ) from error
        wrong = [mark for mark in marks if not isinstance(mark, int) or not 0 <= mark < classes]
        if wrong:
            raise DamagedDataError(f"{path} has a label {wrong[0]}; they are 0 to {classes - 1}")
        labels += marks
    shapes = {picture.shape for picture in images}
    if len(shapes) != 1:
        raise DamagedDataError(f"{paths[0]}: images of {len(shapes)} shapes; one is expected")
    return np.stack(images), np.array(labels, np.uint8)


def _picture(pillow: Any, entry: dict[str, bytes]) -> Array:
    with pillow.open(io.BytesIO(entry["bytes"])) as picture:
        if picture.mode not in ("L", "RGB"):
            raise ValueError(f"a picture of mode {picture.mode}; gray or RGB is expected")
        return np.asarray(picture)
