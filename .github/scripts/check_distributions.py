"""Check what check-wheel-contents and twine do not know of wheels and sdists: `… FILE …`.

The core metadata are of a version that indexes take, with the project's licence and both bounds of
every sibling; the licence is in each file, and a changelog and tests in an sdist. A pure wheel has
nothing compiled, that of a platform all that is compiled for it, and a tag that an index takes.
"""

import sys
import tarfile
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path

from workspace import PURE, ROOT, project, unbounded

# The libraries of a kernel, in the wheels whose platform ends so.
COMPILED = {
    "_x86_64": ("avx2", "avx512", "default"),
    "_aarch64": ("default",),
    "_arm64": ("default",),
}


def compiled_problems(file: str, names: list[str], wheel: str) -> Iterator[str]:
    """What is wrong with the compiled files of a wheel, by its name and its metadata `WHEEL`."""
    module, _, interpreter, abi, platform = file.removesuffix(".whl").split("-")
    name, platforms = module.replace("_", "-"), platform.split(".")
    found = sorted(each for each in names if each.endswith((".so", ".dylib", ".pyd")))
    wanted: list[str] = []
    if platforms != ["any"]:
        suffix = next((end for end in COMPILED if all(p.endswith(end) for p in platforms)), None)
        if name not in PURE or suffix is None:
            yield f"{name} has no wheel for {platform}"
            return
        wanted = [f"{module}/kernels/{each}.so" for each in COMPILED[suffix]]
    if found != wanted:
        yield f"the compiled files are {found}, not {wanted}"
    if (interpreter, abi) != ("py3", "none"):
        yield f"{file} is for one Python alone"
    if any(platform.startswith("linux_") for platform in platforms):
        yield f"{file} does not say for which libc it is: auditwheel repair"
    if f"Root-Is-Purelib: {str(not wanted).lower()}" not in wheel.splitlines():
        yield f"WHEEL does not say Root-Is-Purelib: {str(not wanted).lower()}"


def problems(path: Path) -> Iterator[str]:
    """What is wrong with a wheel or an sdist."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
            (place,) = (name for name in names if name.endswith(".dist-info/METADATA"))
            text = archive.read(place).decode("utf-8")
            record = archive.read(place.replace("METADATA", "RECORD")).decode("utf-8")
            wheel = archive.read(place.replace("METADATA", "WHEEL")).decode("utf-8")
        # check-wheel-contents believes RECORD.
        for name in sorted({line.split(",")[0] for line in record.splitlines()} ^ {*names}):
            yield f"{name} is in RECORD or in the archive, and not in both"
        yield from compiled_problems(path.name, names, wheel)
        needed = {f"{place.removesuffix('METADATA')}licenses/LICENSE"}
    else:
        with tarfile.open(path) as archive:
            names = [name.partition("/")[2] for name in archive.getnames()]
            member = archive.extractfile(f"{path.name.removesuffix('.tar.gz')}/PKG-INFO")
            text = member.read().decode("utf-8") if member else ""
        needed = {"pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE"}
        if not any(name.startswith("tests/") for name in names):
            yield "the tests are missing"
    for name in sorted(needed.difference(names)):
        yield f"{name} is missing"
    metadata = Parser().parsestr(text)
    if metadata["Metadata-Version"] != "2.4":
        yield f"Metadata-Version is {metadata['Metadata-Version']}; indexes take 2.4"
    licence = project(ROOT / "packages" / metadata["Name"])["license"]
    if metadata["License-Expression"] != licence:
        yield f"License-Expression is {metadata['License-Expression']}, not {licence}"
    for requirement in unbounded(metadata.get_all("Requires-Dist") or [], metadata["Name"]):
        yield f"sibling without both bounds: {requirement}"


if __name__ == "__main__":
    found = [f"{name}: {problem}" for name in sys.argv[1:] for problem in problems(Path(name))]
    sys.exit("\n".join(found) or None)
