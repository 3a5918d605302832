"""What `hatch_build.py` makes of a source folder: both kinds of wheels, and the editable one."""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1]
X86 = platform.machine() == "x86_64"
NAMES = ["avx2", "avx512", "default"] if X86 else ["default"]
CC = os.environ.get("CC") or next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), "cc")


@pytest.fixture
def source(tmp_path):
    """A copy of what is in an sdist, without what was compiled here."""
    folder = tmp_path / "source"
    for name in ("csrc", "src"):
        ignored = shutil.ignore_patterns("__pycache__", "kernels")
        shutil.copytree(HERE / name, folder / name, ignore=ignored)
    for name in ("hatch_build.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(HERE / name, folder)
    return folder


@pytest.fixture
def quick(tmp_path):
    """A compiler that optimizes nothing: how fast the kernel is matters to none of these."""
    compiler = tmp_path / "quick cc"
    compiler.write_text(f'#!/bin/sh\nexec {CC} "$@" -O0\n')
    compiler.chmod(0o700)
    return shlex.quote(str(compiler))


def build(source, **variables):
    """Build a wheel, and return its path and what was said."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel"]
    done = subprocess.run(
        command,
        cwd=source,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return next(source.glob("dist/*.whl"), None), done.stdout


def compiled(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (place,) = (name for name in names if name.endswith(".dist-info/WHEEL"))
        return sorted(name for name in names if name.endswith(".so")), archive.read(place).decode()


def test_the_wheel_of_a_platform_has_every_library(source, quick):
    wheel, _ = build(source, CC=quick)
    names, text = compiled(wheel)
    assert names == [f"stac_torch/kernels/{name}.so" for name in NAMES]
    tag = wheel.stem.partition("-py3-none-")[2]
    assert tag.endswith(platform.machine())
    assert f"Root-Is-Purelib: false\nTag: py3-none-{tag}\n" in text
    assert not list(source.glob("src/stac_torch/kernels/tmp*"))


@pytest.mark.skipif(sys.platform != "linux", reason="lists the symbols of ELF libraries")
def test_a_library_needs_libc_alone(source, tmp_path):
    """As it is shipped: without optimization even a sign is a call."""
    wheel, _ = build(source, CC=f"{CC} -Wall -Wextra -Werror")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    for path in (tmp_path / "stac_torch" / "kernels").iterdir():
        shown = subprocess.run(
            ["nm", "--dynamic", str(path)], capture_output=True, text=True, check=True
        )
        entries = [line.split()[-2:] for line in shown.stdout.splitlines()]
        # What the compiler itself leaves open is weak (w).
        needed = {name.partition("@")[0] for kind, name in entries if kind == "U"}
        assert needed <= {"memcpy", "memmove", "memset", "__stack_chk_fail"}
        given = {name for kind, name in entries if kind == "T"}
        assert given - {"_init", "_fini"} == {"stac_sign_step", "stac_all_finite"}


PURE = [
    ({"STAC_TORCH_PURE": "1"}, "STAC_TORCH_PURE is set"),
    ({"CC": "neither-this --one"}, "no C compiler (neither-this --one) is on the PATH"),
    ({"CC": "", "PATH": ""}, "no C compiler (cc, gcc, clang) is on the PATH"),
]


@pytest.mark.parametrize(("variables", "why"), PURE)
def test_without_a_compiler_the_wheel_is_pure_and_says_so(source, variables, why):
    (source / "src" / "stac_torch" / "kernels").mkdir()
    (source / "src" / "stac_torch" / "kernels" / "default.so").touch()
    wheel, said = build(source, **variables)
    assert f"stac-torch without the CPU kernel, the pure form: {why}" in said
    assert wheel.name.endswith("-py3-none-any.whl")
    names, text = compiled(wheel)
    assert names == []
    assert "Root-Is-Purelib: true\n" in text


def test_a_compiler_that_fails_ends_the_build(source, tmp_path):
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho this compiler is broken >&2\nexit 3\n")
    compiler.chmod(0o700)
    wheel, said = build(source, CC=str(compiler))
    assert wheel is None
    assert "this compiler is broken" in said
    assert "the C compiler failed; name another in CC, or set STAC_TORCH_PURE=1" in said
    assert not list(source.glob("src/stac_torch/kernels/*"))


def test_the_editable_form_compiles_into_the_source_and_is_pure_again(source, quick):
    script = "from hatchling.build import build_editable as build; print(build('dist'))"
    (source / "dist").mkdir()
    kernels = source / "src" / "stac_torch" / "kernels"
    command = [sys.executable, "-c", script]
    for variables, names in (({"CC": quick}, NAMES), ({"STAC_TORCH_PURE": "1"}, [])):
        environment = {**os.environ, **variables}
        subprocess.run(command, cwd=source, check=True, capture_output=True, env=environment)
        assert sorted(path.stem for path in kernels.glob("*")) == names
