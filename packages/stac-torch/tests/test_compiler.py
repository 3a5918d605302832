"""Building the CPU kernel: once, for its owner alone, and with errors that say what to do."""

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from stac_torch import STAC, _compiler
from torch import nn


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """An empty cache, and a process that has loaded nothing yet."""
    monkeypatch.setenv("STAC_TORCH_CACHE", str(tmp_path / "cache"))
    # How fast the kernel is matters to none of these, and optimizing it takes most of a build.
    flags = tuple("-O0" if flag == "-O3" else flag for flag in _compiler.FLAGS)
    assert flags != _compiler.FLAGS
    monkeypatch.setattr(_compiler, "FLAGS", flags)
    _compiler.cpu_library.cache_clear()
    yield tmp_path / "cache"
    _compiler.cpu_library.cache_clear()


def step():
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    optimizer = STAC([p], role="sign", fused=True, lr=0.5)
    try:
        optimizer.step()
    finally:
        assert p.tolist() in ([0.5] * 3, [1.0] * 3)
    return p.tolist()


def test_it_is_built_once_and_is_its_owners(fresh):
    assert step() == [0.5] * 3
    (built,) = fresh.iterdir()
    assert stat.S_IMODE(fresh.stat().st_mode) == 0o700
    assert stat.S_IMODE(built.stat().st_mode) == 0o700
    before = built.stat().st_mtime_ns
    _compiler.cpu_library.cache_clear()
    assert step() == [0.5] * 3
    assert [(path, path.stat().st_mtime_ns) for path in fresh.iterdir()] == [(built, before)]


def test_other_flags_are_another_file(fresh, monkeypatch):
    step()
    monkeypatch.setattr(_compiler, "FLAGS", (*_compiler.FLAGS, "-DANOTHER"))
    _compiler.cpu_library.cache_clear()
    step()
    assert len(list(fresh.iterdir())) == 2


def test_without_a_compiler_nothing_changes(fresh, monkeypatch):
    monkeypatch.setattr(_compiler, "COMPILERS", ("no-such-compiler",))
    monkeypatch.delenv("CC", raising=False)
    match = r"found no C compiler \(no-such-compiler\): install one, name it in the environment"
    with pytest.raises(RuntimeError, match=match):
        step()
    monkeypatch.setenv("CC", "neither-this --one")
    with pytest.raises(RuntimeError, match=r"\(CC='neither-this --one'\)"):
        step()


def test_a_compiler_that_fails_is_quoted(fresh, monkeypatch):
    compiler = fresh.parent / "cc"
    compiler.write_text("#!/bin/sh\necho this compiler is broken >&2\nexit 3\n")
    compiler.chmod(0o700)
    monkeypatch.setenv("CC", str(compiler))
    with pytest.raises(RuntimeError, match=r"exited with 3:\nthis compiler is broken"):
        step()
    assert not fresh.exists()


def test_what_others_may_write_is_not_loaded(fresh):
    step()
    (built,) = fresh.iterdir()
    for path, mode in ((built, 0o722), (fresh, 0o777)):
        usual = stat.S_IMODE(path.stat().st_mode)
        path.chmod(mode)
        _compiler.cpu_library.cache_clear()
        with pytest.raises(RuntimeError, match="could have been written by another user"):
            step()
        path.chmod(usual)


def test_a_link_is_not_followed(fresh):
    step()
    (built,) = fresh.iterdir()
    built.rename(fresh.parent / "elsewhere.so")
    built.symlink_to(fresh.parent / "elsewhere.so")
    _compiler.cpu_library.cache_clear()
    with pytest.raises(RuntimeError, match="could have been written by another user"):
        step()


def test_what_cannot_be_loaded_is_named(fresh, monkeypatch):
    def cut_off(build, sources, openmp, path):
        path.write_bytes(b"no library")
        path.chmod(0o700)

    monkeypatch.setattr(_compiler, "_build", cut_off)
    with pytest.raises(RuntimeError, match=rf"cannot be loaded .*: remove {fresh}/sign-\w+\.so if"):
        step()


def test_a_cache_that_cannot_be_written_is_named(fresh, monkeypatch):
    def read_only(*args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(_compiler.tempfile, "TemporaryDirectory", read_only)
    match = f"{fresh} cannot be written .*Read-only.* Set STAC_TORCH_CACHE to a folder of your own"
    with pytest.raises(RuntimeError, match=match):
        step()


def test_another_system_is_told_so_and_not_to_install_a_compiler(fresh, monkeypatch):
    monkeypatch.delattr(os, "getuid")
    monkeypatch.setattr(_compiler.platform, "system", lambda: "Windows")
    monkeypatch.setattr(_compiler, "COMPILERS", ("no-such-compiler",))
    match = "needs a POSIX system, this is Windows: build the optimizer with fused=False"
    with pytest.raises(RuntimeError, match=match):
        step()


def test_clang_links_the_openmp_that_it_compiles_for(fresh, monkeypatch):
    """Its calls are not in torch's library, which is gcc's."""
    log = fresh.parent / "log"
    clang = fresh.parent / "clang"
    clang.write_text(
        f'#!/bin/sh\necho "$@" >> {log}\ncase "$*" in *-dM*) echo "#define __clang__ 1";; esac\n'
        'exec cc "$@"\n'
    )
    clang.chmod(0o700)
    monkeypatch.setenv("CC", str(clang))
    monkeypatch.setattr(_compiler, "torch_openmp", lambda: Path("/no/libgomp.so.1"))
    assert step() == [0.5] * 3
    linked = log.read_text().splitlines()[-1]
    assert "-shared" in linked
    assert "-fopenmp" in linked
    assert "libgomp" not in linked


def test_a_cache_that_cannot_be_made_is_named(fresh, monkeypatch):
    (fresh.parent / "file").write_text("")
    monkeypatch.setenv("STAC_TORCH_CACHE", str(fresh.parent / "file" / "folder"))
    with pytest.raises(RuntimeError, match="Set STAC_TORCH_CACHE to a folder of your own"):
        step()


@pytest.mark.slow
def test_one_openmp_library_serves_torch_and_the_kernel():
    """A second one would keep threads of its own spinning beside torch's."""
    script = (
        "import torch\nfrom stac_torch import _compiler\n_compiler.cpu_library()\n"
        "print({l.split()[-1] for l in open('/proc/self/maps') if 'omp' in l.split()[-1]})"
    )
    if not Path("/proc/self/maps").exists() or _compiler.torch_openmp() is None:
        pytest.skip("this torch brings no OpenMP library, or this system does not tell")
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ
    )
    assert len(eval(done.stdout)) == 1, done.stdout
