"""The compiled kernel of the CPU: whether it is here, and if not, why."""

import ctypes
import functools

from stac_torch._compiler import cpu_library


def cpu_kernel() -> ctypes.CDLL | None:
    """Return the kernel's library, or None where it cannot be had."""
    found = _found()
    return None if isinstance(found, str) else found


def why_no_cpu_kernel() -> str:
    """Say in one clause why :func:`cpu_kernel` returns None; empty where it does not."""
    found = _found()
    return found if isinstance(found, str) else ""


@functools.cache
def _found() -> ctypes.CDLL | str:
    try:
        return cpu_library()
    except RuntimeError as error:
        return str(error)
