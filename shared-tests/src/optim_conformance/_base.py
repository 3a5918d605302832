"""What the groups of checks share: an adapter, its cases, and how a run is driven."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import pytest

from optim_conformance.adapter import OPTIMIZERS, Array, OptimizerAdapter, Run, Tree
from optim_conformance.cases import CASES, LOW_PRECISION, Case

DTYPE_CAPABILITY = {"float64": "f64", "bfloat16": "bf16", "float16": "f16", "complex64": "complex"}


class Checks:
    """Base of the groups of checks; a package's test class sets `adapter`."""

    adapter: ClassVar[OptimizerAdapter]

    @classmethod
    def offered(cls) -> list[str]:
        """Return the optimizers that the adapter offers, in the table's order."""
        return [opt for opt in OPTIMIZERS if opt in cls.adapter.optimizers()]

    @classmethod
    def lacking(cls, requires: Iterable[str]) -> str | None:
        """Return the reason to skip, None where every capability is there."""
        lacks = sorted(set(requires) - cls.adapter.capabilities)
        return f"{cls.adapter.name} declares no {', '.join(map(repr, lacks))}" if lacks else None

    def need(self, *requires: str) -> None:
        """Skip the check, with the reason, where the adapter lacks a capability."""
        reason = self.lacking(requires)
        if reason:
            pytest.skip(reason)

    def start(
        self,
        case: Case,
        dtype: str = "float32",
        *,
        params: Tree | None = None,
        hparams: Mapping[str, Any] | None = None,
    ) -> Run:
        """Start a case's run, with parameters or hyperparameters replaced."""
        return self.adapter.start(
            case.optimizer,
            case.hparams if hparams is None else hparams,
            case.params(dtype) if params is None else params,
            dtype=dtype,
        )

    def drive(self, run: Run, grads: Sequence[Tree]) -> Run:
        """Feed gradients to a run at its constant learning rate."""
        for g in grads:
            run.step(g)
        return run

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Give `case`, `dtype` and `opt` the values that this adapter offers."""
        names = metafunc.fixturenames
        if "low_dtype" in names:
            self._parametrize(metafunc, "low_dtype", LOW_PRECISION, ("bfloat16", "float16"))
        elif "case" in names:
            self._parametrize(metafunc, "dtype", CASES, ("float32", "float64"))
        elif "opt" in names:
            metafunc.parametrize("opt", self.offered())

    def _parametrize(
        self, metafunc: pytest.Metafunc, name: str, cases: Sequence[Case], dtypes: Sequence[str]
    ) -> None:
        rows: list[Any] = []
        for case in cases:
            for dtype in dtypes:
                if case.optimizer not in self.offered() or dtype in case.not_in:
                    continue
                wants = {DTYPE_CAPABILITY[dtype]} if dtype in DTYPE_CAPABILITY else set[str]()
                reason = self.lacking(case.requires | wants)
                marks = [pytest.mark.skip(reason=reason)] if reason else []
                rows.append(pytest.param(case, dtype, id=f"{case}-{dtype}", marks=marks))
        metafunc.parametrize(("case", name), rows)


def scribble(tree: Tree) -> None:
    """Overwrite every array of a tree in place with values that no run can survive."""
    for array in tree.values():
        array.setflags(write=True)
        array[...] = 113


def writable(tree: Tree) -> dict[str, Array]:
    """Return an independent, writable copy of a tree."""
    return {k: v.copy() for k, v in tree.items()}
