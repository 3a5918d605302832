"""XLA's results are kept beside pytest's own cache, for all workers and sessions of a machine.

Compiling takes most of the time of tests with JAX, and most programs are compiled more than once:
by both workers, by several tests and packages, by the session of another Python. An entry's key is
the program itself with the versions of compiler and device, so what a change of ours compiles to is
new. What the tests count is what JAX traces and hands to the compiler, which no entry saves.
"""

import os

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Name the folder to JAX, and to the processes that tests start."""
    # A file that another worker is still writing, or never finished, is compiled anew.
    config.addinivalue_line(
        "filterwarnings", "ignore:Error (reading|writing) persistent compilation cache:UserWarning"
    )
    if config.pluginmanager.has_plugin("cacheprovider"):
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(config.cache.mkdir("jax")))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
