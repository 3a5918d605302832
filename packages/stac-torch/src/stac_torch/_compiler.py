"""Building the CPU kernel at first use: with the system's C compiler, once per machine and user.

The result is kept in a folder that only its owner can write to, under a name made of everything it
depends on: the sources, the command, what the compiler says of itself and of this processor. A
process that finds it there starts no compilation. Nothing is loaded that another user could have
put there.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import torch

SOURCES = ("sign.c", "step.h", "int8.h")
COMPILERS = ("cc", "gcc", "clang")
# Each operation rounds by itself, so that the kernel has the bits of the plain path; the other two
# let square roots and roundings be vectorised and change no value.
FLAGS = ("-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-fopenmp")
_INSTEAD = "or build the optimizer with fused=False"


@functools.cache
def cpu_library() -> ctypes.CDLL:
    """Return the compiled kernel, building it if this machine has not built it yet.

    Raises:
        RuntimeError: This is no POSIX system, there is no compiler, it fails, the cache is not this
            user's alone, or what lies there cannot be loaded.
    """
    check_system()
    compiler = find_compiler()
    build = (*compiler, *FLAGS, native_flag())
    key = hashlib.sha256()
    sources = {name: _source(name) for name in SOURCES}
    identity = _identity(compiler)
    # What clang makes of OpenMP calls a library of its own, which torch's is not.
    openmp = None if "__clang__" in identity else torch_openmp()
    for part in (*sources.values(), shlex.join(build), openmp.name if openmp else "", identity):
        key.update(part.encode())
        key.update(b"\0")
    path = cache_folder() / f"sign-{key.hexdigest()[:32]}.so"
    if not path.exists():
        _build(build, sources, openmp, path)
    check_owner(path)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        msg = (
            f"the compiled kernel of fused=True cannot be loaded ({error}): remove {path} if it is "
            "damaged, set STAC_TORCH_CACHE to a folder from which programs may be run, "
            f"{_INSTEAD}"
        )
        raise RuntimeError(msg) from error


def find_compiler() -> tuple[str, ...]:
    """Return the command of the C compiler: ``CC`` if it is set, else the first that is there.

    Raises:
        RuntimeError: There is none.
    """
    chosen = shlex.split(os.environ.get("CC", ""))
    for candidate in [chosen] if chosen else [[name] for name in COMPILERS]:
        found = shutil.which(candidate[0])
        if found:
            return (found, *candidate[1:])
    looked = f"CC={os.environ['CC']!r}" if chosen else ", ".join(COMPILERS)
    msg = (
        "fused=True on the CPU compiles a kernel at first use and found no C compiler "
        f"({looked}): install one, name it in the environment variable CC, {_INSTEAD}"
    )
    raise RuntimeError(msg)


def native_flag() -> str:
    """Return the flag that makes a compiler use all of this processor."""
    arm = platform.machine().lower() in ("arm64", "aarch64")
    return "-mcpu=native" if arm else "-march=native"


def torch_openmp() -> Path | None:
    """Return the OpenMP library that torch brings along, None if it brings none.

    The kernel is linked against this one: with a second, both would keep their own idle threads,
    which wait for work by turning in circles.
    """
    libraries = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    return libraries[0] if libraries else None


def cache_folder() -> Path:
    """Return the folder of compiled kernels, made if it is missing.

    It is ``STAC_TORCH_CACHE`` if that is set, else ``stac-torch`` under ``XDG_CACHE_HOME`` or
    ``~/.cache``.

    Raises:
        RuntimeError: It cannot be made, or others may write to it.
    """
    chosen = os.environ.get("STAC_TORCH_CACHE")
    base = os.environ.get("XDG_CACHE_HOME")
    folder = Path(chosen) if chosen else Path(base or Path.home() / ".cache") / "stac-torch"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise RuntimeError(_no_place(folder, error)) from error
    check_owner(folder)
    return folder


def _no_place(folder: Path, error: OSError) -> str:
    return (
        f"the compiled kernel of fused=True has no place: {folder} cannot be written ({error}). "
        f"Set STAC_TORCH_CACHE to a folder of your own, {_INSTEAD}"
    )


def check_system() -> None:
    """Raise unless files have owners, and compilers the options of POSIX systems.

    Raises:
        RuntimeError: This is another system.
    """
    if not hasattr(os, "getuid"):
        msg = (
            f"fused=True on the CPU needs a POSIX system, this is {platform.system()}: "
            "build the optimizer with fused=False"
        )
        raise RuntimeError(msg)


def check_owner(path: Path) -> None:
    """Raise unless a path is this user's and no one else may write to it.

    Raises:
        RuntimeError: It is not, or they may.
    """
    status = path.lstat()
    writable = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if status.st_uid != os.getuid() or writable or stat.S_ISLNK(status.st_mode):
        msg = (
            f"{path} could have been written by another user (owner {status.st_uid}, mode "
            f"{stat.filemode(status.st_mode)}), and what lies there would be executed: remove it, "
            "or set STAC_TORCH_CACHE to a folder of your own"
        )
        raise RuntimeError(msg)


def _source(name: str) -> str:
    return resources.files("stac_torch").joinpath("csrc", name).read_text(encoding="utf-8")


def _identity(compiler: Sequence[str]) -> str:
    """Return the compiler's version and the instruction sets it would use here, as its macros."""
    return _run([*compiler, native_flag(), "-dM", "-E", "-x", "c", os.devnull])


def _build(build: Sequence[str], sources: dict[str, str], openmp: Path | None, path: Path) -> None:
    # Beside its place in the cache, so that the last move is atomic.
    try:
        temporary = tempfile.TemporaryDirectory(dir=path.parent, prefix="build-")
    except OSError as error:
        raise RuntimeError(_no_place(path.parent, error)) from error
    with temporary as folder:
        for name, text in sources.items():
            Path(folder, name).write_text(text, encoding="utf-8")
        compiled, linked = Path(folder, "sign.o"), Path(folder, "sign.so")
        _run([*build, "-c", str(Path(folder, "sign.c")), "-o", str(compiled)])
        library = ["-fopenmp"] if openmp is None else [str(openmp)]
        _run([build[0], "-shared", str(compiled), *library, "-lm", "-o", str(linked)])
        linked.chmod(0o700)
        linked.replace(path)


def _run(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603
    except OSError as error:
        msg = (
            f"the C compiler for fused=True does not start: {error}. Name another in CC, {_INSTEAD}"
        )
        raise RuntimeError(msg) from error
    if done.returncode != 0:
        msg = (
            f"the C compiler could not build the kernel of fused=True: {shlex.join(command)} "
            f"exited with {done.returncode}:\n{done.stderr[-2000:].strip()}\n"
            f"Name another compiler in the environment variable CC, {_INSTEAD}"
        )
        raise RuntimeError(msg)
    return done.stdout
