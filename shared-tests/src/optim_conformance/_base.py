"""What the groups of checks share: an adapter, its cases, and how a run is driven."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import pytest

from optim_conformance.adapter import OPTIMIZERS, Array, OptimizerAdapter, Run, Tree
from optim_conformance.cases import CASES, Case

DTYPE_CAPABILITY = {"float64": "f64", "bfloat16": "bf16", "float16": "f16", "complex64": "complex"}


class Checks:
    """Base of the groups of checks; a package's test class sets `adapter`."""

    adapter: ClassVar[OptimizerAdapter]

    def offered(self) -> list[str]:
        """Return the optimizers that the adapter offers, in the table's order."""
        return [opt for opt in OPTIMIZERS if opt in self.adapter.optimizers()]

    def missing(self, requires: Iterable[str]) -> str | None:
        """Return the reason to skip, None where every capability is there."""
        lacks = sorted(set(requires) - self.adapter.capabilities)
        return f"{self.adapter.name} declares no {', '.join(map(repr, lacks))}" if lacks else None

    def dtypes(self) -> list[str]:
        """Return the real dtypes of whole trajectories."""
        return ["float32"] + (["float64"] if "f64" in self.adapter.capabilities else [])

    def start(
        self,
        case: Case,
        dtype: str = "float32",
        *,
        params: Tree | None = None,
        hparams: Mapping[str, Any] | None = None,
    ) -> Run:
        """Start a case's run, with parameters or hyperparameters replaced."""
        start = case.params(dtype) if params is None else params
        return self.adapter.start(
            case.optimizer, case.hparams if hparams is None else hparams, start, dtype=dtype
        )

    def drive(self, run: Run, grads: Sequence[Tree], case: Case, first: int = 1) -> Run:
        """Feed gradients to a run; `first` is the number of the first step."""
        for t, g in enumerate(grads, start=first):
            run.step(g, lr=case.lr(t))
        return run

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Give `case`, `dtype`, `opt` and friends the values that this adapter can run."""
        names = metafunc.fixturenames
        if "case" in names and "dtype" in names:
            rows = [
                self._param((case, dtype), f"{case}-{dtype}", case.requires)
                for case in CASES
                if case.optimizer in self.offered()
                for dtype in self.dtypes()
            ]
            metafunc.parametrize(("case", "dtype"), rows)
        elif "opt" in names:
            metafunc.parametrize("opt", self.offered())

    def _param(self, values: tuple[Any, ...], name: str, requires: Iterable[str]) -> Any:
        reason = self.missing(requires)
        marks = [pytest.mark.skip(reason=reason)] if reason else []
        return pytest.param(*values, id=name, marks=marks)


def copied(tree: Tree) -> dict[str, Array]:
    """Return an independent copy of a tree."""
    return {k: v.copy() for k, v in tree.items()}
