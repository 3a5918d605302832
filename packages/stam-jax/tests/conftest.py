"""XLA's results are kept beside pytest's own cache, for all workers and sessions of a machine.

Compiling takes most of the time of these tests, and most programs are compiled more than once: by
both workers, by several tests, by the session of another Python. An entry's key is the program
itself with the versions of compiler and device, so what a change of ours compiles to is new. What
the tests count is what JAX traces and hands to the compiler, which no entry saves.
"""

import os

import pytest


def pytest_configure(config: pytest.Config) -> None:
    # A file that another worker is still writing, or never finished, is compiled anew.
    config.addinivalue_line(
        "filterwarnings", "ignore:Error (reading|writing) persistent compilation cache:UserWarning"
    )
    if config.pluginmanager.has_plugin("cacheprovider"):
        # Read by JAX when it is imported, and by the processes that tests start.
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(config.cache.mkdir("jax")))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


# A float64 trajectory compiles as long as the float32 one and differs in the dtype alone: which
# dtypes a rule keeps is tried on every version with these cases, the others on the newest Python.
DOUBLE = {"stam:defaults", "stam:corrected", "stam:parity", "stam_lite:defaults"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        values = getattr(getattr(item, "callspec", None), "params", {})
        case = str(values.get("case"))
        double = values.get("dtype") == "float64" and case not in {"None", *DOUBLE}
        # AdamW is the second section of STAC, whose cases are tried on every version.
        if double or values.get("opt") == "adamw" or case.startswith("adamw:"):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="module")
def selected_values(request):
    """A function (test, parameter) -> the parameter's values that this session selects, sorted.

    For a module whose tests read one report of a process: it need not hold what nobody reads.
    """

    def find(test, parameter):
        return sorted(
            {
                item.callspec.params[parameter]
                for item in request.session.items
                if getattr(item, "originalname", None) == test
            }
        )

    return find
