"""What the sessions of noxfile.py are made of: install a package, run its tests, build them all."""

import shutil
import subprocess
import tomllib
from pathlib import Path

import check_distributions
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


def group(name: str) -> list[str]:
    """The requirements of a dependency group of the root, groups it includes resolved."""
    requirements: list[str] = []
    for entry in PYPROJECT["dependency-groups"].get(name, []):
        requirements += [entry] if isinstance(entry, str) else group(entry["include-group"])
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


def pytest(session: nox.Session, *args: str, slow: bool = True, package: str = "") -> None:
    """Two workers with one thread each: two cores, and no suite waits for another's thread pool.

    What needs a GPU or hours is collected, and run by name.
    """
    markers = "not gpu and not nightly" + ("" if slow else " and not slow")
    dist = DIST.get(package, "worksteal")
    command = ("pytest", "-n2", f"--dist={dist}", "-m", markers, *args, *session.posargs)
    session.run(*command, env={"OMP_NUM_THREADS": "1"})


def run_tests(
    session: nox.Session, package: str, *options: str, whole: bool = True, slow: bool = False
) -> None:
    """Install a package as `install_editable` does, and run its tests, or the heart of them."""
    install_editable(session, package, *options)
    tests = f"packages/{package}/tests"
    heart = [f"{tests}/test_{name}.py" for name in HEART[package].split()]
    pytest(session, *([tests] if whole else heart), slow=slow, package=package)


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


def check_files(session: nox.Session, package: str, dist: Path, *options: str) -> None:
    """Check a package's built files, and that each wheel works in an environment with no other.

    The wheel that an index would give to this machine is tried last, and stays.
    """
    module = package.replace("-", "_")
    files = sorted(dist.glob(f"{module}-*"))
    session.run("uvx", TWINE, "check", "--strict", *map(str, files), external=True)
    # Every file of the source and no other, in one folder; check_distributions.py knows what is
    # compiled.
    source = ("--package", f"packages/{package}/src/{module}", "--toplevel", module)
    source += ("--package-omit", "__pycache__,*.so")
    for file in (str(file) for file in files if file.suffix == ".whl"):
        compiled = () if file.endswith("-any.whl") else ("--ignore", "W102")
        session.run("uvx", CHECK_WHEEL, "--no-config", *source, *compiled, file, external=True)
    if faults := check_distributions.report(files):
        session.error(faults)
    for built in reversed(wheels(dist, package)):
        session.install(*options, built)
        session.run("python", "-I", f"{SCRIPTS}/check_alone.py", package)
        session.run("uv", "pip", "check", external=True)


def wheels(dist: Path, package: str) -> list[str]:
    """The paths of a package's built wheels that fit this machine, that of its platform first."""
    built = dist.glob(f"{package.replace('-', '_')}-*.whl")
    tags = {str(path): parse_wheel_filename(path.name)[3] for path in built}
    fitting = (path for tag in sys_tags() for path in tags if tag in tags[path])
    return list(dict.fromkeys(fitting))


def reference(dist: Path, package: str) -> str:
    """What an index would give to this machine with the package's extras, as a requirement."""
    return f"{package}{EXTRAS.get(package, '')} @ {Path(wheels(dist, package)[0]).as_uri()}"


def run_blocks(session: nox.Session, readme: Path) -> None:
    """Run a README's Python blocks in an empty folder: what they write stays out of the tree."""
    session.chdir(session.create_tmp())
    session.run("pytest", "-c", str(ROOT / "pyproject.toml"), "--markdown-docs", str(readme))
    session.chdir(ROOT)


def try_published(session: nox.Session, package: str, ours: str, *options: str) -> None:
    """Use the newest published version of a package that takes the built wheel `ours`.

    In an environment of its own: what another dependent needs could stand in for what is missing.
    """
    command = ["uv", "run", "--isolated", "--no-project", "--python", str(session.python), *options]
    command += ["--with", ours, "--with", package]
    alone = ("python", "-I", f"{SCRIPTS}/check_alone.py", package)
    found = subprocess.run([*command, *alone], check=False, capture_output=True, text=True)
    if "No solution found" in found.stderr:
        session.log(f"no published {package} takes this one, so none can break")
    elif found.returncode:
        session.error(found.stdout + found.stderr)
