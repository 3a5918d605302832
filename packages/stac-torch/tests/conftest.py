"""Which checks of the compiled form wait for the nightly session; the libraries of the kernel."""

from pathlib import Path
from typing import Any

import pytest
import torch
from stac_torch import _kernel

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


# Torch's names of vector instructions, of which a processor has all up to one.
CAPABILITIES = ("DEFAULT", "AVX2", "AVX512")
OWN = torch.backends.cpu.get_cpu_capability()
HERE = CAPABILITIES[: CAPABILITIES.index(OWN) + 1] if OWN in CAPABILITIES else CAPABILITIES[:1]


def use_kernel(monkeypatch: pytest.MonkeyPatch, capability: str) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    _kernel._found.cache_clear()
    kernel = _kernel.cpu_kernel()
    assert kernel is not None, _kernel.why_no_cpu_kernel()
    assert Path(kernel._name).stem == capability.lower()


@pytest.fixture(params=HERE)
def each_kernel(request, monkeypatch):
    """Run a test with every library of the CPU kernel that this processor can run."""
    use_kernel(monkeypatch, request.param)
    yield
    _kernel._found.cache_clear()


@pytest.fixture
def kernels(monkeypatch):
    """Give a test an iterator that uses one of these libraries after another."""

    def each():
        for capability in HERE:
            use_kernel(monkeypatch, capability)
            yield capability

    yield each
    _kernel._found.cache_clear()
