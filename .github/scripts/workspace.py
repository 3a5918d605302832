"""The packages of this workspace and what they declare: the one list that the tools here share."""

import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement

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
# Where the repository will stand. Until that is known, a name that cannot exist (RFC 2606): every
# package's [project.urls] begins with it, and release.py publishes nothing while it does.
# `python release.py address URL` writes the true one everywhere.
ADDRESS = "https://project.invalid/optimizers"
UNKNOWN = ".invalid/"
# The extras with which a package is tested, where it has some.
EXTRAS = {"optim-checkpoint": "[cli,fsspec,jax,torch]", "optim-bench": "[jax,torch,parquet]"}
# What builds the pure wheel of a package that also has one with compiled parts for each platform:
# the variable that its build hook reads. GitHub's runners for those platforms, the first of which
# builds the rest as well.
PURE = {"stac-torch": "STAC_TORCH_PURE"}
RUNNERS = ("ubuntu-24.04", "ubuntu-24.04-arm", "macos-15")


def project(folder: Path) -> dict:
    """The [project] table of the package in a folder."""
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def sibling_requirements(declared: dict) -> Iterator[Requirement]:
    """What a [project] table requires of other packages here, in its extras as well."""
    groups = [declared.get("dependencies", []), *declared.get("optional-dependencies", {}).values()]
    for requirement in map(Requirement, chain.from_iterable(groups)):
        if requirement.name in PACKAGES and requirement.name != declared["name"]:
            yield requirement


def urls(package: str, address: str = ADDRESS) -> dict[str, str]:
    """The [project.urls] of a package."""
    folder = f"{address}/tree/main/packages/{package}"
    return {
        "Homepage": folder,
        "Source": address,
        "Issues": f"{address}/issues",
        "Changelog": f"{address}/blob/main/packages/{package}/CHANGELOG.md",
    }
