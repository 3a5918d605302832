"""The CPU kernel: which library a process takes, what is said where there is none, its threads."""

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from stac_torch import STAC, _fused_cpu, _kernel
from torch import nn


@pytest.fixture
def anew():
    """A process that has looked for nothing yet, and will look again."""
    for cached in (_kernel._found, _kernel.run_team):
        cached.cache_clear()
    yield
    for cached in (_kernel._found, _kernel.run_team):
        cached.cache_clear()


def step():
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    optimizer = STAC([p], role="sign", fused=True, lr=0.5)
    try:
        optimizer.step()
    finally:
        assert p.tolist() in ([0.5] * 3, [1.0] * 3)
    return p.tolist()


def test_it_is_here_and_says_nothing():
    assert isinstance(_kernel.cpu_kernel(), ctypes.CDLL)
    assert _kernel.why_no_cpu_kernel() == ""
    assert step() == [0.5] * 3


@pytest.mark.usefixtures("anew")
def test_the_pure_wheel_says_so_and_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(_kernel, "FOLDER", tmp_path)
    assert _kernel.cpu_kernel() is None
    assert _kernel.why_no_cpu_kernel() == "this installation is the pure wheel"
    match = r"no kernel for the CPU: this installation is the pure wheel\. Install the wheel for"
    with pytest.raises(RuntimeError, match=match):
        step()


@pytest.mark.usefixtures("anew")
def test_a_library_that_cannot_be_loaded_is_named(tmp_path, monkeypatch):
    (tmp_path / "default.so").write_bytes(b"no library")
    monkeypatch.setattr(_kernel, "FOLDER", tmp_path)
    assert _kernel.cpu_kernel() is None
    assert f"its library cannot be loaded ({tmp_path}/default.so" in _kernel.why_no_cpu_kernel()
    with pytest.raises(RuntimeError, match="cannot be loaded"):
        step()


@pytest.mark.usefixtures("anew")
def test_what_torch_has_no_library_for_takes_the_default_one(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "SVE256")
    assert Path(_kernel.required_cpu_kernel()._name).name == "default.so"


def test_a_process_takes_what_torch_says_of_the_processor():
    script = "from stac_torch._kernel import cpu_kernel; print(cpu_kernel()._name)"
    command = [sys.executable, "-c", script]
    environment = {"ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert Path(done.stdout.strip()).name == "default.so"


@pytest.mark.usefixtures("anew")
def test_without_gomp_parallel_one_thread_takes_the_step(monkeypatch):
    # A library that is linked to no OpenMP.
    monkeypatch.setattr(torch._C, "__file__", str(_kernel.FOLDER / "default.so"))
    _kernel.run_team.cache_clear()
    assert _kernel.run_team() is None
    assert step() == [0.5] * 3


def test_the_team_takes_the_step(monkeypatch):
    """A team of two calls the work twice; the second call finds nothing left to do."""
    asked = []

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    def team(work, job, threads, flags):
        asked.append((threads, flags))
        for _ in range(2):
            ctypes.CFUNCTYPE(None, ctypes.c_void_p)(work)(job)

    pointer = ctypes.cast(team, ctypes.c_void_p)
    monkeypatch.setattr(_fused_cpu, "run_team", lambda: pointer)
    # So few entries would be no work for two.
    monkeypatch.setattr(_fused_cpu, "_GRAIN", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert step() == [0.5] * 3
    finally:
        torch.set_num_threads(before)
    # The look for what is not finite, and the step.
    assert asked == [(2, 0), (2, 0)]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux tells of a process")
def test_its_team_is_that_of_torch():
    """A second OpenMP library would keep threads of its own spinning beside torch's."""
    script = (
        "import os, torch\nfrom torch import nn\nfrom stac_torch import STAC\n"
        "torch.set_num_threads(3)\np = nn.Parameter(torch.ones(100_000))\n"
        "torch.ones(1_000_000).add(1)\n"
        "before = {*os.listdir('/proc/self/task')}\n"
        "p.grad = torch.ones_like(p)\nSTAC([p], role='sign', fused=True).step()\n"
        "print(len(before), len({*os.listdir('/proc/self/task')} - before))\n"
        "print({l.split()[-1] for l in open('/proc/self/maps') if 'omp' in l.split()[-1]})"
    )
    assert _kernel.run_team() is not None
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    threads, libraries = done.stdout.splitlines()
    before, new = map(int, threads.split())
    assert before >= 3
    assert new == 0
    assert len(eval(libraries)) == 1
