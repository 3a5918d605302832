"""What twine and check-wheel-contents do not know of wheels and sdists.

The core metadata are of a version that indexes take, the licence is in each file, and a changelog
and tests in an sdist. A wheel's tag is one that an index takes, and what is compiled in it is what
the platform needs: nothing in a pure one.
"""

import re
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from workspace import PURE

# By the tag of a wheel, the libraries of a kernel that it holds.
COMPILED = {
    r"py3-none-any": (),
    r"py3-none-(manylinux\w+_x86_64\.?)+": ("avx2", "avx512", "default"),
    r"py3-none-(manylinux\w+_aarch64\.?)+": ("default",),
    r"py3-none-macosx\w+_arm64": ("default",),
}


def compiled_problems(file: str, names: Iterable[str]) -> Iterator[str]:
    """What is wrong with a wheel's tag, and with its compiled files."""
    module, _, tag = file.removesuffix(".whl").split("-", 2)
    kernels = next((value for key, value in COMPILED.items() if re.fullmatch(key, tag)), None)
    if kernels is None or (kernels and module.replace("_", "-") not in PURE):
        yield f"no wheel of {module} is released as {tag}"
        return
    wanted = [f"{module}/kernels/{kernel}.so" for kernel in kernels]
    found = sorted(name for name in names if name.endswith((".so", ".dylib", ".pyd")))
    if found != wanted:
        yield f"the compiled files are {found}, not {wanted}"


def problems(path: Path) -> Iterator[str]:
    """What is wrong with a wheel or an sdist."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as archive:
            names = {name for name in archive.namelist() if not name.endswith("/")}
            (place,) = (name for name in names if name.endswith(".dist-info/METADATA"))
            metadata = archive.read(place)
            record = archive.read(place.replace("METADATA", "RECORD")).decode()
        # check-wheel-contents believes RECORD.
        for name in sorted({line.split(",")[0] for line in record.splitlines()} ^ names):
            yield f"{name} is in RECORD or in the archive, and not in both"
        yield from compiled_problems(path.name, names)
        needed = {f"{place.removesuffix('METADATA')}licenses/LICENSE"}
    else:
        with tarfile.open(path) as archive:
            files = [name.partition("/")[2] for name in archive.getnames()]
            information = archive.extractfile(f"{path.name.removesuffix('.tar.gz')}/PKG-INFO")
            metadata = information.read() if information else b""
        names = {*files, *(file.partition("/")[0] for file in files)}
        needed = {"pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "tests"}
    for name in sorted(needed - names):
        yield f"{name} is missing"
    if not metadata.startswith(b"Metadata-Version: 2.4\n"):
        yield f"its metadata begin with {metadata[:21]!r}; indexes take version 2.4"


def report(paths: Iterable[Path]) -> str:
    """What is wrong with some files, a line each."""
    return "\n".join(f"{path.name}: {problem}" for path in paths for problem in problems(path))
