"""Which checks of the compiled form wait for the nightly session."""

import pytest

# What Dynamo could capture wrongly: every case's trajectory, storage, skipping, odd shapes, and
# what makes it compile again. Each run of a check takes it more than a second.
COMPILED = {
    "test_trajectory_params",
    "test_trajectory_state",
    "test_low_precision_step",
    "test_complex",
    "test_moment_storage",
    "test_odd_shapes",
    "test_empty_leaf",
    "test_skip",
    "test_one_compilation",
    "test_adapter_declares_what_exists",
    "test_no_override",
}
# The same graphs on other numbers.
AGAIN = {("bad", float("inf")), ("bad", -float("inf"))}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if getattr(getattr(item, "cls", None), "__name__", None) == "TestCompiled":
            values = getattr(getattr(item, "callspec", None), "params", {})
            again = any(values.get(name) == value for name, value in AGAIN)
            if again or item.originalname not in COMPILED:
                item.add_marker(pytest.mark.nightly)
            # Hundreds of examples are hundreds of runs.
            item.add_marker(pytest.mark.timeout(3600))
