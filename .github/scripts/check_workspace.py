"""Check the rules of the workspace that no other tool knows: `python check_workspace.py`.

What they are stands beside each, as the sentence that says it is broken.
"""

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

from pip._internal.models.index import PyPI
from workspace import ADDRESS, PACKAGES, ROOT, project, sibling_requirements, urls

MARKER = "<!-- releases start -->"
MACHINE_PATH = r"(^|[^A-Za-z0-9_.-])/(root|work|Users/[a-z]+|home/[a-z]+)/"
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
# Where each package must be named, and how: what a list forgets is not tested or not released.
LISTS = {
    ".github/scripts/workspace.py": '"{}": (',
    ".github/workflows/ci.yml": '"-t {}"',
    ".github/workflows/nightly.yml": "{}",
    ".github/workflows/release.yml": '"{}-v*"',
}


def package_problems(folder: Path, licence: bytes) -> Iterator[str]:
    """What is wrong with one package."""
    declared = project(folder)
    for requirement in sibling_requirements(declared):
        if sorted(bound.operator for bound in requirement.specifier) != ["<", ">="]:
            yield f"{requirement} needs a floor and a ceiling, such as >=0.1,<0.2"
    if (folder / "LICENSE").read_bytes() != licence:
        yield "LICENSE differs from the one at the top"
    module = declared["name"].replace("-", "_")
    if not (folder / "src" / module / "py.typed").exists():
        yield f"src/{module}/py.typed is missing"
    if folder.parent.name != "packages":
        return
    if MARKER not in (folder / "CHANGELOG.md").read_text(encoding="utf-8"):
        yield f"CHANGELOG.md has no line {MARKER!r}, below which releases are written"
    if declared.get("urls") != urls(declared["name"]):
        yield "[project.urls] is not that of workspace.py: run release.py address URL"


def readme_problems(root: Path, package: str) -> Iterator[str]:
    """Which links of a package's README work here alone; the site shows whether the others do."""
    text = (root / "packages" / package / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("https://", "#")):
            yield f"README.md links to {target}: write {ADDRESS}/blob/main/packages/{package}/..."


def finding_problems(folder: Path) -> Iterator[str]:
    """Which findings their index forgets."""
    index = (folder / "README.md").read_text(encoding="utf-8")
    for path in sorted(folder.glob("*.sh")):
        if f"]({path.name})" not in index:
            yield f"findings/README.md does not list {path.name}"


def list_problems(root: Path, packages: Iterable[str]) -> Iterator[str]:
    """Which lists of packages forget one; uv itself says what its sources lack."""
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    linter = tomllib.loads(text)["tool"]["importlinter"]
    kinds = ("source_modules", "containers")
    held = {name for each in linter["contracts"] for kind in kinds for name in each.get(kind, ())}
    for package in packages:
        for name, how in LISTS.items():
            if how.format(package) not in (root / name).read_text(encoding="utf-8"):
                yield f"{name} does not name {package} (as {how.format(package)})"
        if package.replace("-", "_") not in held.intersection(linter["root_packages"]):
            yield f"import-linter has no contract for {package}, or not among its root_packages"


def git(root: Path, *arguments: str) -> list[str]:
    """Run git in a checkout and return the lines it prints; 1 is its status for no match."""
    command = ["git", "-C", str(root), *arguments]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode > 1:
        raise SystemExit(done.returncode)
    return done.stdout.splitlines()


def tracked_problems(root: Path, *hosts: str) -> Iterator[str]:
    """What is wrong with the names and the text of tracked files."""
    for name in git(root, "ls-files", ":(glob)**/tests*/**/__init__.py"):
        yield f"{name}: importlib mode runs the wrong tests beside it; delete it"
    for name in git(root, "ls-files", ":(glob)**/uv.lock"):
        yield f"{name} names index hosts; git must ignore it"
    patterns = "|".join([MACHINE_PATH, *map(re.escape, hosts)])
    for line in git(root, "grep", "-I", "--line-number", "--extended-regexp", patterns):
        yield f"{line}: names an index host, or a path of one machine"


def problems(root: Path) -> Iterator[str]:
    """Everything that is wrong with the workspace."""
    licence = (root / "LICENSE").read_bytes()
    for folder in (*sorted((root / "packages").iterdir()), root / "shared-tests"):
        for problem in package_problems(folder, licence):
            yield f"{folder.relative_to(root)}: {problem}"
    for package in PACKAGES:
        for problem in readme_problems(root, package):
            yield f"packages/{package}: {problem}"
    yield from finding_problems(root / "findings")
    yield from list_problems(root, sorted(path.name for path in (root / "packages").iterdir()))
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["uv"]
    if not TIMESTAMP.fullmatch(settings["exclude-newer"]):
        yield f"exclude-newer {settings['exclude-newer']!r} is no full UTC timestamp"
    yield from tracked_problems(root, PyPI.netloc, PyPI.file_storage_domain)


if __name__ == "__main__":
    sys.exit("\n".join(problems(ROOT)) or None)
