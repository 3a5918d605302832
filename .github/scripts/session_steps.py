"""What the sessions of noxfile.py are made of: install a package, run its tests, build them all."""

import shutil
import subprocess
import tomllib
from collections.abc import Sequence
from pathlib import Path

import nox
import release
from packaging.tags import sys_tags
from packaging.utils import parse_wheel_filename
from workspace import EXTRAS, PACKAGES, ROOT, SCRIPTS, SIBLINGS

# uvx ignores exclude-newer, so what it runs is pinned.
TWINE = "twine==7.0.0"
CHECK_WHEEL = "check-wheel-contents==0.6.3"

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
# Where modules have long fixtures, each module stays in one worker: both would compute them.
DIST = {"optim-checkpoint": "loadfile"}

# The heart of each package: what users call, without what takes minutes. `uvx nox -t quick` runs
# it, and so does what mixes an old Python with new frameworks, or old frameworks with a new Python.
HEART = {
    "stam-core": "conformance hyperparams namespaces package rules stac",
    "stam-jax": "arguments descent errors leaves limits nonfinite rounding state_dict",
    "stac-torch": "construction frozen layers loading nonfinite partition rule stam tensor_lr",
    "optim-checkpoint": "cli commit damage golden locks names policy retention typed",
    "optim-bench": "cli evidence protocol results source stats store",
}

# What needs a GPU or hours is collected, and run by name.
MARKERS = "not gpu and not nightly"


def files(package: str, *, whole: bool) -> list[str]:
    """The tests of a package, or the files that are the heart of it."""
    tests = f"packages/{package}/tests"
    return [tests] if whole else [f"{tests}/test_{name}.py" for name in HEART[package].split()]


def group(name: str) -> list[str]:
    """The requirements of a dependency group of the root, groups it includes resolved."""
    requirements: list[str] = []
    for entry in PYPROJECT["dependency-groups"].get(name, []):
        if isinstance(entry, dict):
            requirements += group(entry["include-group"])
        else:
            requirements.append(entry)
    return requirements


def editable(*packages: str) -> list[str]:
    """The options that install packages of the working tree, with the extras they are tested with.

    A name with extras of its own, `package[extra]`, gets those instead.
    """
    return [flag for name in packages for flag in ("-e", f"packages/{name}{EXTRAS.get(name, '')}")]


def install_editable(session: nox.Session, package: str, *options: str) -> None:
    """Install a package of the working tree with its extras and siblings, then its test tools.

    The tools come second, and may not move what is there: options such as a lowest resolution
    decide about the package and its dependencies alone.
    """
    session.install(*options, *editable(*SIBLINGS[package], package))
    freeze = ("uv", "pip", "freeze", "--exclude-editable")
    frozen = str(session.run(*freeze, silent=True, stderr=subprocess.DEVNULL, external=True))
    constraints = Path(session.create_tmp(), "frozen.txt")
    constraints.write_text(frozen, encoding="utf-8")
    tools = [*group("test-tools"), *group(f"test-{package}")]
    session.install("--constraints", str(constraints), "-e", "shared-tests", *tools)


def pytest(session: nox.Session, *args: str, markers: str, package: str = "") -> None:
    """Two workers with one thread each: two cores, and no suite waits for another's thread pool."""
    dist = DIST.get(package, "worksteal")
    session.run(
        *("pytest", "-n2", f"--dist={dist}", "-m", f"{MARKERS}{markers}"),
        *args,
        *session.posargs,
        env={"OMP_NUM_THREADS": "1"},
    )


def doctests(session: nox.Session, package: str, *options: str) -> None:
    """Run the examples of a package's docstrings.

    Apart from its tests, because the option would also import the scripts that those start as
    processes. The one module that imports an extra of its own has no examples, and
    `beside(submitit)` imports it.
    """
    skip = ("--doctest-modules", "--ignore-glob=*/_submitit.py")
    pytest(session, *skip, *options, f"packages/{package}/src", markers="")


def pytest_alone(session: nox.Session, tests: str) -> None:
    """One process, for tests that start workers of their own."""
    session.run("pytest", "-m", MARKERS, tests, *session.posargs, env={"OMP_NUM_THREADS": "1"})


def build(session: nox.Session) -> Path:
    """Wheels and sdists of every package at HEAD, as a release builds them, once a run."""
    dist = ROOT / ".nox" / "dist"
    head = str(session.run("git", "rev-parse", "HEAD", silent=True, external=True))
    built_from = dist / "HEAD"
    if not built_from.exists() or built_from.read_text(encoding="utf-8") != head:
        shutil.rmtree(dist, ignore_errors=True)
        for package in PACKAGES:
            release.build(ROOT, package, dist)
        built_from.write_text(head, encoding="utf-8")
    return dist


def check_files(session: nox.Session, package: str, dist: Path) -> None:
    """Check a package's built files: the index would show them, and they hold what they should."""
    module = package.replace("-", "_")
    files = [str(path) for path in sorted(dist.glob(f"{module}-*"))]
    session.run("uvx", TWINE, "check", "--strict", *files, external=True)
    # Every file of the source and no other, in one folder; check_distributions.py knows what is
    # compiled.
    source = ("--package", f"packages/{package}/src/{module}", "--toplevel", module)
    source += ("--package-omit", "__pycache__,*.so")
    for file in (file for file in files if file.endswith(".whl")):
        compiled = () if file.endswith("-any.whl") else ("--ignore", "W102")
        session.run("uvx", CHECK_WHEEL, "--no-config", *source, *compiled, file, external=True)
    session.run("python", f"{SCRIPTS}/check_distributions.py", *files)


def wheels(dist: Path, package: str) -> list[str]:
    """The paths of a package's built wheels that fit this machine, that of its platform first."""
    order = {tag: place for place, tag in reversed([*enumerate(sys_tags())])}
    places = {}
    for path in dist.glob(f"{package.replace('-', '_')}-*.whl"):
        fitting = [order[tag] for tag in parse_wheel_filename(path.name)[3] if tag in order]
        if fitting:
            places[str(path)] = min(fitting)
    return sorted(places, key=places.__getitem__)


def wheel(dist: Path, package: str) -> str:
    """The path of the built wheel that an index would give to this machine."""
    return wheels(dist, package)[0]


def reference(dist: Path, package: str) -> str:
    """The built wheel with the package's extras, as a requirement."""
    return f"{package}{EXTRAS.get(package, '')} @ {Path(wheel(dist, package)).as_uri()}"


def run_blocks(session: nox.Session, readme: Path) -> None:
    """Run a README's Python blocks in an empty folder: what they write stays out of the tree."""
    configuration = ROOT / "pyproject.toml"
    session.chdir(session.create_tmp())
    session.run("pytest", "-c", str(configuration), "--markdown-docs", str(readme))
    session.chdir(ROOT)


def try_published(
    session: nox.Session,
    package: str,
    ours: str,
    index: Sequence[str],
    options: Sequence[str],
) -> None:
    """Install the newest published version of a package that takes `ours`, and use it.

    In an environment of its own: what another dependent needs could stand in for what is missing.

    Args:
        session: The session.
        package: What was published.
        ours: The requirement that it is tried with, a built wheel.
        index: Options of release.py about the index to ask for versions.
        options: Options of the installation.
    """
    session.install(*group("release"))
    command = ("python", f"{SCRIPTS}/release.py", "published", package, *index)
    if not str(session.run(*command, silent=True)).strip():
        session.log(f"{package}: no version is published yet, so none is tried")
        return
    place = Path(session.create_tmp(), package)
    python = str(place / "bin" / "python")
    make = ("uv", "venv", "--quiet", "--clear", "--python", str(session.python), str(place))
    session.run(*make, external=True)
    install = ["uv", "pip", "install", "--python", python, *options, ours, package]
    found = subprocess.run(install, check=False, capture_output=True, text=True)
    if found.returncode == 0:
        session.run(python, "-I", f"{SCRIPTS}/check_alone.py", package, external=True)
    elif "No solution found" in found.stderr:
        session.log(f"{package}: no published version takes this one, so none can break")
    else:
        session.error(found.stderr)
