"""What the groups of checks share: an adapter, its cases, and how a run is driven."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import pytest

from optim_conformance.adapter import OPTIMIZERS, Array, OptimizerAdapter, Run, Tree
from optim_conformance.cases import CASES, COMPLEX, LOW_PRECISION, Case
from optim_conformance.errors import ERRORS

Check = TypeVar("Check", bound=Callable[..., Any])

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
        elif "complex_dtype" in names:
            self._parametrize(metafunc, "complex_dtype", COMPLEX, ("complex64",))
        elif "case" in names:
            self._parametrize(metafunc, "dtype", CASES, ("float32", "float64"))
        elif "error" in names:
            bad = [
                pytest.param(e, id=str(e), marks=self._skip(e.requires))
                for e in ERRORS
                if e.optimizer in self.offered()
            ]
            metafunc.parametrize("error", bad or [self._nothing("optimizer with refusals")])
        elif "opt" in names:
            wanted = getattr(metafunc.function, "_optimizers", OPTIMIZERS)
            rows = [pytest.param(opt, id=opt) for opt in self.offered() if opt in wanted]
            metafunc.parametrize("opt", rows or [self._nothing(", ".join(wanted))])

    def _skip(self, requires: Iterable[str]) -> list[pytest.MarkDecorator]:
        reason = self.lacking(requires)
        return [pytest.mark.skip(reason=reason)] if reason else []

    def _nothing(self, what: str) -> Any:
        reason = f"{self.adapter.name} offers no {what}"
        return pytest.param(None, id="none", marks=pytest.mark.skip(reason=reason))

    def _parametrize(
        self, metafunc: pytest.Metafunc, name: str, cases: Sequence[Case], dtypes: Sequence[str]
    ) -> None:
        rows: list[Any] = []
        for case in cases:
            for dtype in dtypes:
                if case.optimizer not in self.offered() or dtype in case.not_in:
                    continue
                wants = {DTYPE_CAPABILITY[dtype]} if dtype in DTYPE_CAPABILITY else set[str]()
                marks = self._skip(case.requires | wants)
                rows.append(pytest.param(case, dtype, id=f"{case}-{dtype}", marks=marks))
        metafunc.parametrize(("case", name), rows)


def for_optimizers(*names: str) -> Callable[[Check], Check]:
    """Decorate a check that means something for these optimizers only."""

    def mark(check: Check) -> Check:
        # A function may carry attributes; its type does not say so.
        check._optimizers = names  # pyright: ignore[reportFunctionMemberAccess]
        return check

    return mark


def scribble(tree: Tree) -> None:
    """Overwrite every array of a tree in place with values that no run can survive."""
    for array in tree.values():
        array.setflags(write=True)
        array[...] = 113


def writable(tree: Tree) -> dict[str, Array]:
    """Return an independent, writable copy of a tree."""
    return {k: v.copy() for k, v in tree.items()}
