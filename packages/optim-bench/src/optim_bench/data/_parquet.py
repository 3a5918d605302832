"""Images in Parquet files as the Hugging Face hub keeps them: encoded bytes beside labels."""

import importlib
import io
from pathlib import Path
from typing import Any

import numpy as np

from optim_bench.data._files import MissingDataError
from optim_bench.data._vendored import Array, DamagedDataError


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
