"""The compiled kernel of the CPU: whether this installation has it, and if not, why.

It comes in the wheel (`hatch_build.py`), as one plain C library for each set of vector instructions
that torch tells apart.
"""

import ctypes
import functools
from pathlib import Path

import torch

FOLDER = Path(__file__).parent / "kernels"


def cpu_kernel() -> ctypes.CDLL | None:
    """Return the library for this processor, or None where there is none."""
    found = _found()
    return found if isinstance(found, ctypes.CDLL) else None


def why_no_cpu_kernel() -> str:
    """Say in one clause why :func:`cpu_kernel` returns None; empty where it does not."""
    found = _found()
    return found if isinstance(found, str) else ""


def required_cpu_kernel() -> ctypes.CDLL:
    """Return the library for this processor.

    Raises:
        RuntimeError: There is none.
    """
    kernel = cpu_kernel()
    if kernel is None:
        msg = (
            f"fused=True has no kernel for the CPU: {why_no_cpu_kernel()}. Install the wheel for "
            "this platform, or install from the sources where there is a C compiler, or use "
            "fused=False"
        )
        raise RuntimeError(msg)
    return kernel


@functools.cache
def _found() -> ctypes.CDLL | str:
    own = FOLDER / f"{torch.backends.cpu.get_cpu_capability().lower()}.so"
    path = own if own.exists() else FOLDER / "default.so"
    if not path.exists():
        return "this installation is the pure wheel"
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        return f"its library cannot be loaded ({error})"


@functools.cache
def run_team() -> ctypes.c_void_p | None:
    """Return what runs a team of threads, of the OpenMP library that torch itself calls.

    None if that has no ``GOMP_parallel``, as GNU's and LLVM's have: then one thread does the work.
    """
    # The symbol is looked for in what torch is linked to, and in nothing else.
    linked = ctypes.CDLL(torch._C.__file__)
    found = getattr(linked, "GOMP_parallel", None)
    return None if found is None else ctypes.cast(found, ctypes.c_void_p)
