"""What every test here is marked by, and a report that several of a module read."""

import pytest

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
