"""Which checks of the compiled form wait for the nightly session."""

from typing import Any

import pytest

# What Dynamo could capture wrongly: the trajectory of every graph, storage, skipping, odd shapes,
# and what makes it compile again. Each run of a check takes it more than a second.
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


def graph_of(case: Any) -> tuple[Any, ...]:
    """Return what a case's graph depends on: words, flags, zeros, a rate that changes."""
    words = {k: v for k, v in case.hparams.items() if not isinstance(v, float) or v == 0.0}
    return case.optimizer, str(sorted(words.items(), key=str)), case.schedule is not None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    first: dict[Any, str] = {}
    for item in items:
        if getattr(getattr(item, "cls", None), "__name__", None) == "TestCompiled":
            values = getattr(getattr(item, "callspec", None), "params", {})
            again = any(values.get(name) == value for name, value in AGAIN)
            if "case" in values:
                key = (item.originalname, values.get("dtype"), *graph_of(values["case"]))
                again |= first.setdefault(key, values["case"].name) != values["case"].name
            if again or item.originalname not in COMPILED:
                item.add_marker(pytest.mark.nightly)
            # Hundreds of examples are hundreds of runs.
            item.add_marker(pytest.mark.timeout(3600))
