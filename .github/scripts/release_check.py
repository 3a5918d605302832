"""Release every package to an index on loopback, from a clone, and install each one alone from it.

The same release.py that the workflow calls prepares, plans and builds; `uv publish` uploads. What
only a real index or clone can show to be refused is tried in between; the tests of release.py try
the rest. Nothing leaves this machine and nothing is written to the checkout. With `--verify` the
session between build and upload in the workflow runs as well; that takes many minutes.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from wsgiref.simple_server import WSGIRequestHandler, make_server

import check_distributions
import pypiserver
import release
from packaging.version import Version
from workspace import PACKAGES, ROOT, project

IDENTITY = ("-c", "user.name=release check", "-c", "user.email=release-check@localhost")


def run(*command: str, cwd: Path, umask: int = -1, **variables: str) -> str:
    """Run a command and return its output; show that output when it fails."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    environment = {**os.environ, **variables}
    done = subprocess.run(command, check=False, cwd=cwd, umask=umask, env=environment, **pipes)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}")
    return done.stdout


@contextmanager
def index(folder: Path) -> Iterator[str]:
    """A package index on loopback that knows only what is uploaded to it."""
    folder.mkdir()
    anyone = {"authenticate": [], "password_file": "."}
    app = pypiserver.app(roots=[folder], disable_fallback=True, hash_algo="sha256", **anyone)
    WSGIRequestHandler.log_message = lambda *_: None
    with make_server("127.0.0.1", 0, app) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def must_refuse(root: Path, address: str, reason: str, package: str) -> None:
    """Plan a release that must be refused for a certain reason."""
    try:
        release.plan(root, tag=None, package=package, index=f"{address}/simple")
    except release.RefusedError as refused:
        if reason not in str(refused):
            raise SystemExit(f"refused, but not because {reason!r}:\n{refused}") from refused
        print(f"  refused as it must be: {reason}")
    else:
        raise SystemExit(f"a release was planned that must be refused: {reason}")


def coming(root: Path, package: str) -> str:
    """The version after the declared one: whatever has been released, this has not."""
    major, minor, micro = Version(project(root / "packages" / package)["version"]).release
    return f"{major}.{minor}.{micro + 1}"


def raise_floors(root: Path) -> None:
    """Let every package need what is to come of its siblings; the index holds nothing older."""
    versions = {package: coming(root, package) for package in PACKAGES}
    for pyproject in root.glob("packages/*/pyproject.toml"):
        text = pyproject.read_text(encoding="utf-8")
        for package, version in versions.items():
            text = re.sub(rf"\b{package}>=[0-9.]+", f"{package}>={version}", text)
        pyproject.write_text(text, encoding="utf-8")


def commit(root: Path, message: str) -> None:
    """Commit everything in the clone."""
    run("git", "add", "--all", cwd=root)
    run("git", *IDENTITY, "commit", "--quiet", "--message", message, cwd=root)


def verify(root: Path, package: str, dist: Path, address: str) -> None:
    """Verify built files with the session that release.yml calls."""
    session = ("uvx", "nox", "--sessions", "verify_release", "--")
    run(*session, package, str(dist), f"{address}/simple/", cwd=root)
    print("  verified as the workflow does it")


def publish(root: Path, package: str, address: str, scratch: Path, *, verified: bool) -> None:
    """Take one package from its fragments to an environment that installed it from the index."""
    version = coming(root, package)
    tag = f"{package}-v{version}"
    release.prepare(root, package, version)
    commit(root, f"Release {package} {version}")
    run("git", "tag", tag, cwd=root)
    release.plan(root, tag=tag, package=None, index=f"{address}/simple")

    out, again = scratch / "dist" / package, scratch / "again" / package
    files = release.build(root, package, out)
    # Another machine, as far as a build could notice: a private umask and a far time zone.
    command = (sys.executable, ".github/scripts/release.py", "build", package, "--out", str(again))
    run(*command, cwd=root, umask=0o077, TZ="Pacific/Auckland")
    if (out / "SHA256SUMS").read_bytes() != (again / "SHA256SUMS").read_bytes():
        raise SystemExit(f"{package}: two builds of one commit differ")
    print(f"  {', '.join(path.name for path in files)}: the same bytes twice")
    if faults := check_distributions.report(files):
        raise SystemExit(faults)
    if verified:
        verify(root, package, out, address)
    upload = ("uv", "publish", "--publish-url", f"{address}/", "--trusted-publishing", "never")
    identity = ("--username", "anyone", "--password", "anything")
    run(*upload, *identity, *map(str, files), cwd=scratch)
    install_from(address, f"{package}=={version}", (out / "SHA256SUMS").read_text(), scratch)
    must_refuse(root, address, "is already published", package)


def install_from(address: str, exact: str, sums: str, scratch: Path) -> None:
    """Install what was built from the index into an empty environment, and use it."""
    hashes = [f"--hash=sha256:{line.split()[0]}" for line in sums.splitlines()]
    requirement, environment = scratch / "requirement.txt", scratch / "environment"
    requirement.write_text(" ".join([exact, *hashes]), encoding="utf-8")
    python = str(environment / "bin" / "python")
    run("uv", "venv", "--python", sys.executable, str(environment), cwd=scratch)
    # The index on loopback comes first and knows our packages; all else is from the default one.
    install = ("uv", "pip", "install", "--python", python, "--index", f"{address}/simple/")
    run(*install, "--requirement", str(requirement), cwd=scratch)
    alone = (python, "-I", str(ROOT / ".github" / "scripts" / "check_alone.py"))
    print("  " + run(*alone, exact.partition("==")[0], cwd=scratch).splitlines()[-1])
    shutil.rmtree(environment)


def main() -> None:
    """Try the refusals that need no release, then release everything in order."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--verify", action="store_true", help="run the session verify_release too")
    verified = parser.parse_args().verify
    with tempfile.TemporaryDirectory() as folder, index(Path(folder, "index")) as address:
        scratch = Path(folder)
        root = scratch / "clone"
        run("git", "clone", "--quiet", str(ROOT), str(root), cwd=scratch)
        raise_floors(root)
        commit(root, "Need what is to come")
        print("before the first release")
        must_refuse(root, address, "is no address", "stam-core")
        release.set_address(root, f"{address}/repository")
        commit(root, "Write where the repository stands")
        for dependent in ("stam-jax", "optim-bench"):  # optim-bench needs siblings for its extras
            must_refuse(root, address, "is not published; release it first", dependent)
        for package in PACKAGES:
            print(package)
            publish(root, package, address, scratch, verified=verified)
        if verified:
            # Once more, now under the dependents that are published.
            verify(root, "stam-core", scratch / "dist" / "stam-core", address)
    print(f"{len(PACKAGES)} packages released to an index on loopback, each installed alone")


if __name__ == "__main__":
    main()
