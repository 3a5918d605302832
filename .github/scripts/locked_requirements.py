"""Compare the resolution of today with `.github/locked-requirements.txt`, or write that file anew.

An existing lock is sticky, so the projects are copied into an empty folder and resolved there.
What is compared holds names, versions, markers and hashes, and no index host.

    python locked_requirements.py --uv uv==X.Y.Z --check
    python locked_requirements.py --uv uv==X.Y.Z --write
"""

import argparse
import difflib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from workspace import ROOT

LOCKED = ROOT / ".github" / "locked-requirements.txt"


def copy_projects(root: Path, target: Path) -> None:
    """Copy what a resolution reads: every pyproject.toml and the README it names."""
    for pyproject in (root / "pyproject.toml", *root.glob("packages/*/pyproject.toml")):
        copy_project(root, pyproject, target)
    copy_project(root, root / "shared-tests" / "pyproject.toml", target)


def copy_project(root: Path, pyproject: Path, target: Path) -> None:
    """Copy one pyproject.toml and its README to the same place below the target."""
    place = target / pyproject.parent.relative_to(root)
    place.mkdir(parents=True, exist_ok=True)
    shutil.copy(pyproject, place)
    readme = pyproject.parent / "README.md"
    if readme.exists():
        shutil.copy(readme, place)


def export(uv: str, root: Path = ROOT) -> str:
    """The whole resolution as requirements with hashes."""
    command = ["uvx", uv, "export", "--quiet", "--no-header", "--no-annotate", "--all-packages"]
    command += ["--all-groups", "--all-extras", "--no-emit-workspace"]
    with tempfile.TemporaryDirectory() as folder:
        copy_projects(root, Path(folder))
        done = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


def main() -> int:
    """Check or write the committed resolution."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--uv", required=True, help="the pinned uv, as uvx takes it")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--check", action="store_true")
    action.add_argument("--write", action="store_true")
    arguments = parser.parse_args()

    today = export(arguments.uv)
    if arguments.write:
        LOCKED.write_text(today, encoding="utf-8")
        print(f"wrote {today.count('==')} requirements")
        return 0
    committed = LOCKED.read_text(encoding="utf-8")
    if today == committed:
        print(f"{today.count('==')} requirements, as committed")
        return 0
    lines = difflib.unified_diff(
        committed.splitlines(), today.splitlines(), "committed", "today", lineterm="", n=0
    )
    print("\n".join(lines))
    print("The resolution moved. If that was meant: nox -s lock -- --write")
    return 1


if __name__ == "__main__":
    sys.exit(main())
