"""The packages of this workspace and what they declare: the one list that the tools here share."""

import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ".github/scripts"
# Each package with the siblings it takes from the workspace. A release of everything goes out in
# this order: a dependent after what it needs.
SIBLINGS = {
    "stam-core": (),
    "stam-jax": ("stam-core",),
    "stac-torch": ("stam-core",),
    "optim-checkpoint": (),
    "optim-bench": ("stam-core", "stam-jax", "stac-torch"),
}
PACKAGES = tuple(SIBLINGS)
# The extras with which a package is tested, where it has some.
EXTRAS = {"optim-checkpoint": "[cli,jax,torch]", "optim-bench": "[jax,torch,parquet]"}


def project(folder: Path) -> dict:
    """The [project] table of the package in a folder."""
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirements(declared: dict) -> Iterator[str]:
    """Every requirement that a [project] table publishes, extras included."""
    yield from declared.get("dependencies", [])
    for extra in declared.get("optional-dependencies", {}).values():
        yield from extra
