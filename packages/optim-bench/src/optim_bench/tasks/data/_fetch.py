"""Full-size data sets from where they are published: on request only, and never unchecked.

The SHA-256 digests and sizes of the named sets are those in the url_checksums of
tensorflow-datasets 4.9.10, which reads the same files.
"""

import hashlib
import http.client
import os
import tarfile
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO

_BLOCK = 1 << 20
_TIMEOUT_SECONDS = 60


class FetchError(RuntimeError):
    """A file could not be fetched, or is not what was asked for."""


@dataclass(frozen=True)
class RemoteFile:
    """A file and what it has to be.

    Args:
        url: http or https.
        sha256: 64 hex digits.
        size: bytes, or None where only the digest is known.
        members: for a tar archive, the base names of the files to take out of it.
        file_name: its name in the data folder; by default the last part of the address.
    """

    url: str
    sha256: str
    size: int | None = None
    members: tuple[str, ...] = ()
    file_name: str = ""

    @property
    def name(self) -> str:
        """Name of the file in the data folder."""
        return self.file_name or self.url.rpartition("/")[2]


@dataclass(frozen=True)
class Download:
    """A data set that can be fetched by name.

    Args:
        title: one line for people.
        licence: whose it is and under which terms, as far as that is sure, in one line.
        workload: what reads it.
        files: its files.
    """

    title: str
    licence: str
    workload: str
    files: tuple[RemoteFile, ...]


def _idx(base: str, *rows: tuple[str, int, str]) -> tuple[RemoteFile, ...]:
    return tuple(RemoteFile(f"{base}/{name}-ubyte.gz", sha, size) for name, size, sha in rows)


DOWNLOADS: Mapping[str, Download] = MappingProxyType(
    {
        "mnist": Download(
            "MNIST, 70,000 handwritten digits of 28x28 pixels",
            "none comes with the files of Yann LeCun, Corinna Cortes and Christopher Burges; those "
            "who pass them on name different ones (CC BY-SA 3.0, MIT)",
            "mnist-cnn",
            _idx(
                "https://storage.googleapis.com/cvdf-datasets/mnist",
                (
                    "train-images-idx3",
                    9_912_422,
                    "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                ),
                (
                    "train-labels-idx1",
                    28_881,
                    "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                ),
                (
                    "t10k-images-idx3",
                    1_648_877,
                    "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                ),
                (
                    "t10k-labels-idx1",
                    4_542,
                    "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
                ),
            ),
        ),
        "fashion-mnist": Download(
            "Fashion-MNIST, 70,000 pictures of clothes of 28x28 pixels",
            "MIT, copyright 2017 Zalando SE",
            "mnist-cnn",
            _idx(
                "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
                (
                    "train-images-idx3",
                    26_421_880,
                    "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                ),
                (
                    "train-labels-idx1",
                    29_515,
                    "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
                ),
                (
                    "t10k-images-idx3",
                    4_422_102,
                    "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                ),
                (
                    "t10k-labels-idx1",
                    5_148,
                    "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
                ),
            ),
        ),
        "cifar10": Download(
            "CIFAR-10, 60,000 photographs of 32x32 pixels, binary version",
            "none comes with the files; their source to cite is Alex Krizhevsky, Learning Multiple "
            "Layers of Features from Tiny Images, 2009",
            "cifar10-cnn",
            (
                RemoteFile(
                    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
                    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
                    170_052_171,
                    (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"),
                ),
            ),
        ),
    }
)


def fetch(files: tuple[RemoteFile, ...], folder: Path, say: Callable[[str], None]) -> None:
    """Fetch files into a folder, check each before it gets its name, and unpack archives.

    Args:
        files: what to fetch; what is there and right is not fetched again.
        folder: the data folder; it is made.
        say: told one line per file.

    Raises:
        FetchError: a file cannot be fetched or written, or has another digest; nothing of it stays.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            _fetch_one(file, folder / file.name, say)
    except OSError as error:
        raise FetchError(f"cannot write to {folder} ({error.strerror or error})") from error


def _fetch_one(file: RemoteFile, path: Path, say: Callable[[str], None]) -> None:
    if path.is_file() and _digest(path) == file.sha256:
        say(f"{path} is there, and right")
    else:
        _download(file, path)
        say(f"{path} fetched, {path.stat().st_size:,} bytes, sha256 {file.sha256}")
    if file.members:
        _unpack(path, file.members)
        say(f"{', '.join(file.members)} unpacked")


def _download(file: RemoteFile, path: Path) -> None:
    if not file.url.startswith(("http://", "https://")):
        raise FetchError(f"{file.url!r} is no http or https address")
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as target:
            found, size = _stream(file, target)
        if found != file.sha256:
            wanted = "" if file.size is None else f" and {file.size:,} bytes"
            raise FetchError(
                f"{file.url} gave {size:,} bytes with sha256 {found}; {file.sha256}{wanted} were "
                "expected, so nothing is kept"
            )
        Path(name).chmod(0o644)
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)


def _stream(file: RemoteFile, target: IO[bytes]) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    try:
        with urllib.request.urlopen(file.url, timeout=_TIMEOUT_SECONDS) as answer:  # noqa: S310 - the scheme is checked above
            # One block more than it should have says that it is too long; the rest can stay there.
            while (file.size is None or size <= file.size) and (block := answer.read(_BLOCK)):
                target.write(block)
                digest.update(block)
                size += len(block)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # It holds the answer's connection.
        reason = getattr(error, "reason", None) or error
        raise FetchError(f"{file.url} cannot be fetched ({reason})") from error
    return digest.hexdigest(), size


def _unpack(archive: Path, members: tuple[str, ...]) -> None:
    """Take the named files out of an archive, whatever folders it wants to put them in."""
    missing = set(members)
    try:
        with tarfile.open(archive) as tar:
            for entry in tar:
                name = entry.name.rpartition("/")[2]
                content = tar.extractfile(entry) if entry.isfile() and name in missing else None
                if content is not None:
                    (archive.parent / name).write_bytes(content.read())
                    missing.discard(name)
    except (tarfile.TarError, EOFError) as error:
        raise FetchError(f"{archive} cannot be unpacked ({error})") from error
    if missing:
        raise FetchError(f"{archive} holds no {', '.join(sorted(missing))}")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
