"""Release every package to an index on loopback, from a clone, and install each one alone from it.

The same release.py that the workflow calls prepares, plans and builds; `uv publish` uploads. What
only a real index or clone can show to be refused is tried in between; the tests of release.py try
the rest. Nothing leaves this machine and nothing is written to the checkout. With `--verify` the
session between build and upload in the workflow runs as well; that takes many minutes.
"""

import argparse
import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import release
from workspace import PACKAGES, ROOT

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
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "pypiserver", "run", "--interface", "127.0.0.1"]
    command += ["--port", str(port), "--disable-fallback", "--hash-algo", "sha256"]
    command += ["--authenticate", ".", "--passwords", ".", str(folder)]
    address = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield address
    finally:
        server.terminate()
        server.wait(timeout=10)


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


def before_release(root: Path) -> None:
    """Put a clone where its declared versions are not released yet, whatever has been.

    The index on loopback is empty, so the oldest sibling that a package takes is the one declared.
    """
    versions = {package: release.project(root, package)["version"] for package in PACKAGES}
    floor = re.compile(rf"\b({'|'.join(PACKAGES)})>=[0-9.]+")
    for package, version in versions.items():
        folder = root / "packages" / package
        pyproject, changelog = folder / "pyproject.toml", folder / "CHANGELOG.md"
        text = pyproject.read_text(encoding="utf-8")
        text = floor.sub(lambda match: f"{match[1]}>={versions[match[1]]}", text)
        pyproject.write_text(text, encoding="utf-8")
        section = re.compile(
            rf"^## {re.escape(version)} \(.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL
        )
        changes = changelog.read_text(encoding="utf-8")
        changelog.write_text(section.sub("", changes), encoding="utf-8")
        (folder / "changes").mkdir(exist_ok=True)
        (folder / "changes" / "+rehearsal.changed.md").write_text(
            "A rehearsal.\n", encoding="utf-8"
        )


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
    version = release.project(root, package)["version"]
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
    check = ROOT / ".github" / "scripts" / "check_distributions.py"
    run(sys.executable, str(check), *map(str, files), cwd=scratch)
    if verified:
        verify(root, package, out, address)
    run(
        *("uv", "publish", "--publish-url", f"{address}/", "--trusted-publishing", "never"),
        *("--username", "anyone", "--password", "anything", *map(str, files)),
        cwd=scratch,
    )
    install_from(address, f"{package}=={version}", files, scratch)
    must_refuse(root, address, "is already published", package)


def install_from(address: str, exact: str, files: list[Path], scratch: Path) -> None:
    """Install the package from the index into an empty environment, every file held to its hash."""
    package = exact.partition("==")[0]
    environment = scratch / f"environment-{package}"
    run("uv", "venv", "--quiet", "--python", sys.executable, str(environment), cwd=scratch)
    python = environment / "bin" / "python"
    wanted, locked = scratch / f"{package}.in", scratch / f"{package}.txt"
    wanted.write_text(f"{exact}\n", encoding="utf-8")
    address = f"{address}/simple/"
    # The index on loopback comes first and knows our packages; all else is from the default one.
    run(
        *("uv", "pip", "compile", "--quiet", "--generate-hashes", "--index", address),
        *("--python", str(python), "--output-file", str(locked), str(wanted)),
        cwd=scratch,
    )
    for wheel in (path for path in files if path.suffix == ".whl"):
        if hashlib.sha256(wheel.read_bytes()).hexdigest() not in locked.read_text(encoding="utf-8"):
            raise SystemExit(f"the index serves another {wheel.name} than the one that was built")
    run(
        *("uv", "pip", "install", "--quiet", "--require-hashes", "--index", address),
        *("--python", str(python), "--requirement", str(locked)),
        cwd=scratch,
    )
    alone = ROOT / ".github" / "scripts" / "check_alone.py"
    print("  " + run(str(python), "-I", str(alone), package, cwd=scratch).splitlines()[-1])
    shutil.rmtree(environment)


def main() -> int:
    """Try the refusals that need no release, then release everything in order."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--verify", action="store_true", help="run the session verify_release too")
    verified = parser.parse_args().verify
    with tempfile.TemporaryDirectory() as folder, index(Path(folder, "index")) as address:
        scratch = Path(folder)
        root = scratch / "clone"
        run("git", "clone", "--quiet", str(ROOT), str(root), cwd=scratch)
        before_release(root)
        commit(root, "Stand before the releases")
        # A release that was made has left its tag in the clone.
        for tag in run("git", "tag", cwd=root).split():
            run("git", "tag", "--delete", tag, cwd=root)
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
    return 0


if __name__ == "__main__":
    sys.exit(main())
