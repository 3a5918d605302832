"""Check what the built wheels and sdists hold: `python check_distributions.py FILE …`."""

import re
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

from workspace import PACKAGES, ROOT, project


def bounded(requirement: str) -> bool:
    """Whether a requirement on a sibling has both a floor and a ceiling."""
    return ">=" in requirement and "<" in requirement.replace(">=", "").replace("<=", "")


def problems_of_metadata(metadata: Message) -> list[str]:
    """What is wrong with the core metadata."""
    found = []
    if metadata["Metadata-Version"] != "2.4":
        found.append(f"Metadata-Version is {metadata['Metadata-Version']}; indexes take 2.4")
    licence = project(ROOT / "packages" / metadata["Name"])["license"]
    if metadata["License-Expression"] != licence:
        found.append(f"License-Expression is {metadata['License-Expression']}, not {licence}")
    for requirement in metadata.get_all("Requires-Dist") or []:
        name = re.split(r"[\s<>=!~\[;(]", requirement, maxsplit=1)[0].lower()
        if name in PACKAGES and not bounded(requirement):
            found.append(f"sibling without both bounds: {requirement}")
    return found


def problems_of_wheel(path: Path) -> list[str]:
    """What is wrong with a wheel: its metadata, or a file missing or too many."""
    module = path.name.split("-")[0]
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        (place,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(place).decode("utf-8"))
    found = problems_of_metadata(metadata)
    information = place.removesuffix("METADATA")
    for needed in (f"{module}/__init__.py", f"{module}/py.typed", f"{information}licenses/LICENSE"):
        if needed not in names:
            found.append(f"{needed} is missing")
    for name in names:
        if not name.startswith((f"{module}/", information)):
            found.append(f"{name} does not belong in the wheel")
    return found


def problems_of_sdist(path: Path) -> list[str]:
    """What is wrong with an sdist."""
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "PKG-INFO"}
    found = [f"{name} is missing" for name in sorted(needed - names)]
    if not any(name.startswith("tests/") for name in names):
        found.append("the tests are missing")
    return found


def main(files: list[str]) -> int:
    """Print every problem and return the exit status."""
    failed = False
    for path in map(Path, files):
        check = problems_of_wheel if path.suffix == ".whl" else problems_of_sdist
        problems = check(path)
        failed |= bool(problems)
        print(f"{path.name}: {'; '.join(problems) or 'as it should be'}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
