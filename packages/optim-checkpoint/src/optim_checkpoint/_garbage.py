# pyright: strict
"""A pause of Python's cyclic collector while very many objects are made that all stay."""

import contextlib
import gc
from collections.abc import Generator


@contextlib.contextmanager
def kept() -> Generator[None]:
    """Look for no garbage meanwhile: what is made here is kept, and looking costs a third.

    Of a restore of 100,000 tensors it took 2.5 of 8.2 s. Not for what waits for a disk: other
    threads go on, and leave garbage.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
