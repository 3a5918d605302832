"""Every check of the workspace: `uvx nox` runs the default ones, `uvx nox -l` lists them all.

Each package is tested in an environment that holds that package, what it declares, and the test
tools. An interpreter that a machine cannot provide skips with its reason; the last session,
`summary`, counts what ran.
"""

import os
import shutil
import subprocess
import tomllib
from pathlib import Path

import nox

nox.needs_version = ">=2025.10"
nox.options.default_venv_backend = "uv"
nox.options.download_python = "never"
nox.options.error_on_missing_interpreters = False
nox.options.reuse_venv = "yes"

# Container images often set this. Tests start hundreds of processes, and each would compile its
# framework anew: importing PyTorch takes 9 s of one core so, and 3 s with what the first one wrote.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

ROOT = Path(__file__).parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SCRIPTS = ".github/scripts"
# uvx ignores exclude-newer, so what it runs is pinned here.
UV = "uv==0.13.9"
TWINE = "twine==7.0.0"
ZIZMOR = "zizmor==1.32.0"
CHECK_JSONSCHEMA = "check-jsonschema==0.39.0"

PYTHONS = ("3.11", "3.12", "3.13")


def available(version: str) -> bool:
    """Whether this machine has an interpreter of that version; none is ever downloaded."""
    command = ["uv", "python", "find", "--quiet", "--no-project", "--no-python-downloads", version]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


HERE = [version for version in PYTHONS if available(version)]
# What runs on one Python only runs on the newest this machine has, so that nothing skips for that.
OLDEST, NEWEST = (HERE or PYTHONS)[0], (HERE or PYTHONS)[-1]
# Each package with the siblings it takes from the workspace. The order is the order of release.
SIBLINGS = {
    "stam-core": (),
    "stam-jax": ("stam-core",),
    "stac-torch": ("stam-core",),
    "optim-checkpoint": (),
    "optim-bench": ("stam-core", "stam-jax", "stac-torch"),
}
PACKAGES = tuple(SIBLINGS)
EXTRAS = {"optim-checkpoint": "[jax,torch]", "optim-bench": "[jax,torch,parquet]"}

# Where modules have long fixtures, each module stays in one worker: both would compute them.
DIST = {"optim-checkpoint": "loadfile"}

# The tag runs all that concerns one package: `uvx nox -t stam-jax`.
each_package = nox.parametrize(
    "package", [nox.param(package, id=package, tags=[package]) for package in PACKAGES]
)

# Without the tag: what is asked for by name only must not come along with it.
each_package_by_name = nox.parametrize("package", PACKAGES, ids=PACKAGES)

# What needs a GPU or hours is collected, and run by name.
MARKERS = "not gpu and not nightly"

ran: list[str] = []


def group(name: str) -> list[str]:
    """The requirements of a dependency group of the root, groups it includes resolved."""
    requirements: list[str] = []
    for entry in PYPROJECT["dependency-groups"].get(name, []):
        if isinstance(entry, dict):
            requirements += group(entry["include-group"])
        else:
            requirements.append(entry)
    return requirements


def done(session: nox.Session) -> None:
    ran.append(session.name)


def install_editable(session: nox.Session, package: str, *options: str) -> None:
    """Install a package of the working tree with its extras and siblings, then its test tools.

    The tools come second, and may not move what is there: options such as a lowest resolution
    decide about the package and its dependencies alone.
    """
    editable = [f"packages/{name}" for name in SIBLINGS[package]]
    editable.append(f"packages/{package}{EXTRAS.get(package, '')}")
    session.install(*options, *(flag for target in editable for flag in ("-e", target)))
    freeze = ("uv", "pip", "freeze", "--exclude-editable")
    frozen = str(session.run(*freeze, silent=True, stderr=subprocess.DEVNULL, external=True))
    constraints = Path(session.create_tmp(), "frozen.txt")
    constraints.write_text(frozen, encoding="utf-8")
    tools = [*group("test-tools"), *group(f"test-{package}")]
    session.install("--constraints", str(constraints), "-e", "shared-tests", *tools)


def pytest(session: nox.Session, *args: str, markers: str, dist: str = "worksteal") -> None:
    """Two workers with one thread each: two cores, and no suite waits for another's thread pool."""
    session.run(
        *("pytest", "-n2", f"--dist={dist}", "-m", f"{MARKERS}{markers}"),
        *args,
        *session.posargs,
        env={"OMP_NUM_THREADS": "1"},
    )


def build(session: nox.Session) -> Path:
    """Wheels and sdists of every package at HEAD, built once a run.

    From a clean clone, because hatchling packs the untracked files of a working tree.
    """
    dist = ROOT / ".nox" / "dist"
    head = str(session.run("git", "rev-parse", "HEAD", silent=True, external=True))
    built_from = dist / "HEAD"
    if built_from.exists() and built_from.read_text(encoding="utf-8") == head:
        return dist
    shutil.rmtree(dist, ignore_errors=True)
    clone = Path(session.create_tmp(), "clone")
    shutil.rmtree(clone, ignore_errors=True)
    session.run("git", "clone", "--quiet", str(ROOT), str(clone), external=True)
    for package in PACKAGES:
        session.run(
            *("uv", "build", "--quiet", "--no-sources", "--package", package),
            *("--directory", str(clone), "--out-dir", str(dist)),
            external=True,
        )
    shutil.rmtree(clone)
    built_from.write_text(head, encoding="utf-8")
    return dist


def wheel(dist: Path, package: str) -> str:
    (found,) = dist.glob(f"{package.replace('-', '_')}-*.whl")
    return str(found)


def reference(dist: Path, package: str) -> str:
    """The built wheel with the package's extras, as a requirement."""
    return f"{package}{EXTRAS.get(package, '')} @ {Path(wheel(dist, package)).as_uri()}"


@nox.session(python=NEWEST)
def lint(session: nox.Session) -> None:
    """Format, lint, import arrows, and the rules of the workspace itself."""
    session.install(*group("lint"), "pip")
    sources = [*(f"packages/{package}" for package in PACKAGES), "shared-tests"]
    session.install("--no-deps", *(flag for path in sources for flag in ("-e", path)))
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    session.run("lint-imports")
    session.run("python", f"{SCRIPTS}/check_workspace.py")
    done(session)


@nox.session(python=NEWEST)
def types(session: nox.Session) -> None:
    """pyright: strict where no framework is involved, standard elsewhere."""
    sources = [f"packages/{package}{EXTRAS.get(package, '')}" for package in PACKAGES]
    flags = [flag for path in (*sources, "shared-tests") for flag in ("-e", path)]
    session.install(*flags, "-e", "packages/optim-bench[ray,submitit]")
    session.install(*group("types"), *group("test"), "nox")
    session.run("pyright")
    done(session)


@nox.session(python=PYTHONS)
@each_package
def tests(session: nox.Session, package: str) -> None:
    """One package with the newest of what it declares; the slow ones on the newest Python only."""
    install_editable(session, package)
    newest = session.python == NEWEST
    markers, dist = "" if newest else " and not slow", DIST.get(package, "worksteal")
    pytest(session, f"packages/{package}/tests", markers=markers, dist=dist)
    if newest:
        # On their own: the option would also import the scripts that tests start as processes. The
        # one module that imports an extra of its own has no examples, and `cluster` imports it.
        sources = f"packages/{package}/src"
        pytest(session, "--doctest-modules", sources, "--ignore-glob=*/_submitit.py", markers="")
    done(session)


@nox.session(python=OLDEST)
@each_package
def minimums(session: nox.Session, package: str) -> None:
    """One package with the oldest of what it declares, on the oldest Python here."""
    install_editable(session, package, "--resolution=lowest-direct")
    dist = DIST.get(package, "worksteal")
    pytest(session, f"packages/{package}/tests", markers=" and not slow", dist=dist)
    done(session)


# The newest versions are what `tests` resolves to; the floor on the oldest Python is in `minimums`.
@nox.session
@nox.parametrize(
    "python, jax, optax",
    [
        nox.param("3.12", "0.8.3", "0.2.6", id="middle", tags=["stam-jax"]),
        nox.param("3.13", "0.6.2", "0.2.4", id="floor", tags=["stam-jax"]),
    ],
)
def jax(session: nox.Session, jax: str, optax: str) -> None:
    """stam-jax on an older JAX and the optax of its time, optax's own suites included."""
    install_editable(session, "stam-jax", f"jax=={jax}", f"optax=={optax}")
    tests = "packages/stam-jax/tests"
    pytest(session, tests, markers=" and not slow")
    # The rest of what JAX and optax change most: the slow tests of these two.
    suites = (f"{tests}/test_optax_suites.py", f"{tests}/test_sharding.py")
    pytest(session, *suites, markers=" and slow")
    done(session)


@nox.session
@nox.parametrize(
    "python, torch",
    [
        nox.param("3.12", "2.10.0", id="floor-3.12", tags=["stac-torch"]),
        nox.param("3.13", "2.10.0", id="floor-3.13", tags=["stac-torch"]),
        nox.param("3.12", "2.13.0", id="middle", tags=["stac-torch"]),
    ],
)
def torch(session: nox.Session, torch: str) -> None:
    """stac-torch on an older PyTorch."""
    install_editable(session, "stac-torch", f"torch=={torch}")
    pytest(session, "packages/stac-torch/tests", markers=" and not slow")
    done(session)


@nox.session(python=NEWEST)
@nox.parametrize("backend", ["cpu", "cu128", "cu130"])
def torch_backend(session: nox.Session, backend: str) -> None:
    """stac-torch on another build of PyTorch, from PyTorch's own index where it can be reached."""
    command = ["uv", "pip", "install", "--dry-run", "--python", session.virtualenv.location]
    command += [f"--torch-backend={backend}", "torch"]
    found = subprocess.run(command, check=False, capture_output=True, text=True)
    if "error sending request" in found.stderr:
        session.skip(f"the index of the {backend} builds cannot be reached from this machine")
    if found.returncode:
        session.error(found.stderr)
    install_editable(session, "stac-torch", f"--torch-backend={backend}")
    markers = " and not slow" if backend == "cpu" else " or gpu"
    pytest(session, "packages/stac-torch/tests", markers=markers)
    done(session)


@nox.session(python=NEWEST)
@nox.parametrize("build", ["cuda12", "cuda13"])
def jax_build(session: nox.Session, build: str) -> None:
    """stam-jax resolves beside the CUDA builds of JAX; nothing is installed."""
    packages = ("packages/stam-core", "packages/stam-jax")
    session.install("--dry-run", *packages, f"jax[{build}]")
    done(session)


@nox.session(python="3.13")  # The published stac-optimizer needs it.
@nox.parametrize(
    "package, published",
    [
        nox.param("stam-jax", "stam-optimizer==0.1.0", id="stam-jax", tags=["stam-jax"]),
        nox.param("stac-torch", "stac-optimizer==0.1.5", id="stac-torch", tags=["stac-torch"]),
    ],
)
def parity(session: nox.Session, package: str, published: str) -> None:
    """The trajectories of the published package that ours descends from."""
    install_editable(session, package)
    session.install(published)
    files = sorted((ROOT / "packages" / package / "tests_parity").glob("*.py"))
    pytest(session, *map(str, files), markers="")
    done(session)


@nox.session(python=NEWEST, tags=["optim-checkpoint"])
def siblings(session: nox.Session) -> None:
    """optim-checkpoint with the optimizers of this workspace, which it must not depend on."""
    install_editable(session, "optim-checkpoint")
    others = ("stam-core", "stam-jax", "stac-torch")
    session.install(*(flag for name in others for flag in ("-e", f"packages/{name}")))
    tests = "packages/optim-checkpoint/tests_siblings"
    pytest(session, tests, markers="", dist=DIST["optim-checkpoint"])
    done(session)


@nox.session(python=NEWEST, tags=["stac-torch"])
def integrations(session: nox.Session) -> None:
    """stac-torch under transformers' Trainer, Accelerate and Lightning."""
    install_editable(session, "stac-torch")
    session.install(*group("integrations"))
    pytest(session, "packages/stac-torch/tests_integration", markers="")
    done(session)


@nox.session(python=NEWEST, tags=["optim-bench"])
@nox.parametrize("executor", ["submitit", "ray"], ids=["submitit", "ray"])
def cluster(session: nox.Session, executor: str) -> None:
    """optim-bench through submitit's local executor, and on a real Ray cluster on loopback."""
    install_editable(session, "optim-bench")
    siblings = (flag for name in SIBLINGS["optim-bench"] for flag in ("-e", f"packages/{name}"))
    session.install(*siblings, "-e", f"packages/optim-bench[{executor}]")
    # One process: the tests start workers of their own, and those of Ray share one cluster.
    tests = f"packages/optim-bench/tests_{executor}"
    session.run("pytest", "-m", MARKERS, tests, *session.posargs, env={"OMP_NUM_THREADS": "1"})
    done(session)


@nox.session(python="3.13", tags=["optim-bench"])  # The published stac-optimizer needs it.
def third_party(session: nox.Session) -> None:
    """The optimizers of other packages that optim-bench enters where they are installed."""
    install_editable(session, "optim-bench")
    session.install("stac-optimizer==0.3.0", "torchao==0.18.0")
    tests = "packages/optim-bench/tests_third_party"
    session.run("pytest", "-m", MARKERS, tests, *session.posargs, env={"OMP_NUM_THREADS": "1"})
    done(session)


@nox.session(python=NEWEST)
def suites(session: nox.Session) -> None:
    """The conformance suites themselves (planted bugs must fail) and the repository's scripts."""
    tools = (*group("test-tools"), *group("release"), *group("nox"))
    session.install("-e", "shared-tests", *tools)
    pytest(session, "shared-tests/tests", f"{SCRIPTS}/tests", markers="")
    done(session)


@nox.session(python=NEWEST, reuse_venv=False)
@each_package
def wheels(session: nox.Session, package: str) -> None:
    """One package alone: its wheel in an empty environment, then its README's blocks."""
    dist = build(session)
    files = sorted(dist.glob(f"{package.replace('-', '_')}-*"))
    session.run("uvx", TWINE, "check", "--strict", *map(str, files), external=True)
    session.run("python", f"{SCRIPTS}/check_distributions.py", *map(str, files))

    required = () if EXTRAS.get(package) else SIBLINGS[package]
    session.install(*(wheel(dist, name) for name in (*required, package)))
    session.run("python", "-I", f"{SCRIPTS}/check_alone.py", package)
    session.run("uv", "pip", "check", external=True)

    # The README shows what the extras are for, so they come in now, and the test tools with them.
    siblings = [wheel(dist, name) for name in SIBLINGS[package]]
    session.install(
        *siblings, reference(dist, package), *group("docs-tools"), *group(f"docs-{package}")
    )
    run_blocks(session, ROOT / "packages" / package / "README.md")
    done(session)


@nox.session(python=NEWEST, reuse_venv=False)
def docs(session: nox.Session) -> None:
    """The root README's blocks, with the wheel of every package installed."""
    dist = build(session)
    named = [reference(dist, package) for package in PACKAGES]
    session.install(*named, *group("docs-tools"))
    run_blocks(session, ROOT / "README.md")
    done(session)


def run_blocks(session: nox.Session, readme: Path) -> None:
    """Run a README's Python blocks in an empty folder: what they write stays out of the tree."""
    configuration = ROOT / "pyproject.toml"
    session.chdir(session.create_tmp())
    session.run("pytest", "-c", str(configuration), "--markdown-docs", str(readme))
    session.chdir(ROOT)


@nox.session(python=False)
def lock(session: nox.Session) -> None:
    """The resolution of today equals the committed one, whatever this machine resolved before."""
    command = ("python", f"{SCRIPTS}/locked_requirements.py", "--uv", UV)
    session.run(*command, *(session.posargs or ["--check"]), external=True)
    done(session)


@nox.session(python=False)
def workflows(session: nox.Session) -> None:
    """The workflows follow their schema and grant nothing they do not need."""
    files = [str(path) for path in sorted((ROOT / ".github" / "workflows").glob("*.yml"))]
    schema = ("--builtin-schema", "vendor.github-workflows")
    session.run("uvx", "--quiet", CHECK_JSONSCHEMA, *schema, *files, external=True)
    session.run("uvx", "--quiet", ZIZMOR, "--offline", *files, external=True)
    done(session)


@nox.session(python=False)
def main_job(session: nox.Session) -> None:
    """`uv run optim-bench run` in a fresh clone, and what it leaves behind."""
    clone = Path(session.create_tmp(), "clone")
    shutil.rmtree(clone, ignore_errors=True)
    session.run("git", "clone", "--quiet", str(ROOT), str(clone), external=True)
    session.chdir(clone)
    session.run("uv", "run", "optim-bench", "run", external=True, env={"VIRTUAL_ENV": None})
    session.run("uv", "run", "python", f"{SCRIPTS}/check_main_job.py", external=True)
    session.chdir(ROOT)
    shutil.rmtree(clone)
    done(session)


@nox.session(python=NEWEST)
def release_check(session: nox.Session) -> None:
    """A whole release of every package to an index on loopback, with what must be refused."""
    session.install(*group("release"))
    session.run("python", f"{SCRIPTS}/release_check.py", *session.posargs)
    done(session)


@nox.session(python=NEWEST, reuse_venv=False, default=False)
def verify_release(session: nox.Session) -> None:
    """Verify built files before they are published: `nox -s verify_release -- PACKAGE DIST`.

    Siblings come from the index, as a user gets them; a third argument names an index that is asked
    before the default one. A new stam-core is also tried under the published packages that depend
    on it, where there are any.
    """
    package, folder, *asked_first = session.posargs
    dist = Path(folder).resolve()
    index = tuple(flag for address in asked_first for flag in ("--index", address))
    # What the root pins everything else by would hide a sibling that was published since.
    newest = (flag for name in PACKAGES for flag in ("--exclude-newer-package", f"{name}=false"))
    options = (*index, *newest)
    files = [str(file) for file in sorted(dist.glob(f"{package.replace('-', '_')}-*"))]
    session.run("uvx", TWINE, "check", "--strict", *files, external=True)
    session.run("python", f"{SCRIPTS}/check_distributions.py", *files)
    session.install(*options, wheel(dist, package))
    session.run("python", "-I", f"{SCRIPTS}/check_alone.py", package)

    session.install(*options, reference(dist, package), "-e", "shared-tests")
    session.install(*group("test-tools"), *group(f"test-{package}"))
    suites = sorted((ROOT / "packages" / package / "tests").rglob("test_*conformance*.py"))
    run_suites = ("pytest", "-n2", "--dist=worksteal", "-m", MARKERS, *map(str, suites))
    session.run(*run_suites, env={"OMP_NUM_THREADS": "1"})
    # optim-bench takes its siblings through extras, which are chosen by those who install it.
    dependents = (d for d, siblings in SIBLINGS.items() if package in siblings and d not in EXTRAS)
    for dependent in dependents:
        session.install(*group("release"))
        command = ("python", f"{SCRIPTS}/release.py", "published", dependent, *index)
        if not str(session.run(*command, silent=True)).strip():
            session.log(f"{dependent}: no version is published yet, so none is tried")
            continue
        # Each in an environment of its own: none may bring what another one does.
        place = Path(session.create_tmp(), dependent)
        python = str(place / "bin" / "python")
        make = ("uv", "venv", "--quiet", "--clear", "--python", str(session.python), str(place))
        session.run(*make, external=True)
        install = ["uv", "pip", "install", "--python", python, *options]
        install += [reference(dist, package), dependent]
        found = subprocess.run(install, check=False, capture_output=True, text=True)
        if found.returncode == 0:
            session.run(python, "-I", f"{SCRIPTS}/check_alone.py", dependent, external=True)
        elif "No solution found" in found.stderr:
            session.log(f"{dependent}: no published version takes this one, so none can break")
        else:
            session.error(found.stderr)
    done(session)


@nox.session(python=NEWEST, default=False)
@each_package_by_name
def nightly(session: nox.Session, package: str) -> None:
    """The long campaigns of one package."""
    install_editable(session, package)
    # With the nightly profile the property checks of the conformance suites are a campaign too.
    selected = ("-m", "(nightly or not slow) and not gpu")
    command = ("pytest", *selected, f"packages/{package}/tests", *session.posargs)
    session.run(*command, env={"HYPOTHESIS_PROFILE": "nightly"})
    done(session)


@nox.session(python=NEWEST, default=False)
def bench_checkpoint(session: nox.Session) -> None:
    """Save, load, stall and memory of optim-checkpoint beside its peers, on an idle machine."""
    install_editable(session, "optim-checkpoint")
    session.install(*group("bench-optim-checkpoint"))
    script = "packages/optim-checkpoint/benchmarks/bench_checkpoint.py"
    session.run("python", script, *session.posargs)


@nox.session(python=NEWEST, default=False)
@nox.parametrize("package", ["stac-torch"], ids=["stac-torch"])
def gpu(session: nox.Session, package: str) -> None:
    """What needs a CUDA device, on a machine that has one."""
    install_editable(session, package)
    session.run("pytest", "-m", "gpu", f"packages/{package}/tests", *session.posargs)
    done(session)


@nox.session(python=False, default=False)
def sbom(session: nox.Session) -> None:
    """A CycloneDX bill of materials of every package beside its hashes: `nox -s sbom -- FOLDER`."""
    folder = Path(session.posargs[0] if session.posargs else ".nox/sbom").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        target = folder / f"{package}.cdx.json"
        command = ("uvx", UV, "export", "--quiet", "--preview-features", "sbom-export")
        options = ("--format", "cyclonedx1.5", "--package", package, "--all-extras", "--no-dev")
        session.run(*command, *options, "--output-file", str(target), external=True, silent=True)
        session.log(f"wrote {target.name}")


@nox.session(python=False)
def summary(session: nox.Session) -> None:
    """Count what ran, so that a run in which every session skipped cannot pass for a green one."""
    session.log(f"{len(ran)} sessions ran: {', '.join(ran)}")
    for python in PYTHONS:
        if python not in HERE:
            session.log(
                f"skipped: the sessions of Python {python}, which this machine does not have"
            )
