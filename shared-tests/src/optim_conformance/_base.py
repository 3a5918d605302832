"""What the groups of checks share: an adapter, its cases, and how a run is driven."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import pytest

from optim_conformance.adapter import Array, OptimizerAdapter, Run, Tree
from optim_conformance.cases import SHAPES, Case
from optim_conformance.rule import OptimizerRule
from optim_conformance.rules import RULES

Check = TypeVar("Check", bound=Callable[..., Any])

DTYPE_CAPABILITY = {"float64": "f64", "bfloat16": "bf16", "float16": "f16", "complex64": "complex"}


@dataclass(frozen=True)
class BadValue:
    """A hyperparameter out of its range.

    Attributes:
        optimizer: A registry name.
        name: The hyperparameter.
        value: The bad value, which the message must show.
    """

    optimizer: str
    name: str
    value: Any

    def __str__(self) -> str:
        return f"{self.optimizer}:{self.name}={self.value!r}"

    def requires(self) -> frozenset[str]:
        """Return the capabilities without which the hyperparameter does not exist."""
        rule = RULES[self.optimizer]
        policy = {rule.policy("")} if self.name == "nonfinite" else set[str]()
        return rule.needs({self.name: self.value}) | policy

    def is_zero_rate(self) -> bool:
        """Tell whether it is a learning rate of 0, which some may have."""
        return self.name == "learning_rate" and self.value == 0

    def says(self) -> str:
        """Return a regular expression for what the message must show."""
        nested = isinstance(self.value, Mapping)
        return re.escape(next(iter(self.value.values())) if nested else str(self.value))

    def hparams(self) -> Mapping[str, Any]:
        """Return hyperparameters of which this one is bad."""
        needed = RULES[self.optimizer].for_leaves(SHAPES)
        return {"learning_rate": 1e-3, "weight_decay": 0.0, **needed, self.name: self.value}


def errors_of(rule: OptimizerRule) -> list[BadValue]:
    """Return every bad value that a rule's ranges name."""
    return [BadValue(rule.name, k, v) for k, allowed in rule.ranges.items() for v in allowed.bad]


class Checks:
    """Base of the groups of checks; a package's test class sets `adapter`."""

    adapter: ClassVar[OptimizerAdapter]

    @classmethod
    def offered(cls) -> list[str]:
        """Return the optimizers that the adapter offers, in the order of their files."""
        return [opt for opt in RULES if opt in cls.adapter.optimizers()]

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
            self._parametrize(metafunc, "low_dtype", "low_precision", ("bfloat16", "float16"))
        elif "complex_dtype" in names:
            self._parametrize(metafunc, "complex_dtype", "complex", ("complex64",))
        elif "case" in names:
            self._parametrize(metafunc, "dtype", "cases", ("float32", "float64"))
        elif "error" in names:
            metafunc.parametrize(
                "error",
                [
                    pytest.param(error, id=str(error), marks=self._skip(error.requires()))
                    for opt in self.offered()
                    for error in errors_of(RULES[opt])
                    if not (self.adapter.capabilities >= {"lr0"} and error.is_zero_rate())
                ],
            )
        elif "opt" in names:
            wanted, what = getattr(metafunc.function, "_where", (lambda rule: True, "optimizer"))
            rows = [pytest.param(opt, id=opt) for opt in self.offered() if wanted(RULES[opt])]
            metafunc.parametrize("opt", rows or [self._nothing(what)])

    def _skip(self, requires: Iterable[str]) -> list[pytest.MarkDecorator]:
        reason = self.lacking(requires)
        return [pytest.mark.skip(reason=reason)] if reason else []

    def _nothing(self, what: str) -> Any:
        reason = f"{self.adapter.name} offers no {what}"
        return pytest.param(None, id="none", marks=pytest.mark.skip(reason=reason))

    def _parametrize(
        self, metafunc: pytest.Metafunc, name: str, table: str, dtypes: Sequence[str]
    ) -> None:
        rows: list[Any] = []
        for case in (case for opt in self.offered() for case in getattr(RULES[opt], table)):
            for dtype in dtypes:
                if dtype in case.not_in:
                    continue
                wants = {DTYPE_CAPABILITY[dtype]} if dtype in DTYPE_CAPABILITY else set[str]()
                marks = self._skip(case.requires | wants)
                rows.append(pytest.param(case, dtype, id=f"{case}-{dtype}", marks=marks))
        metafunc.parametrize(("case", name), rows)


def where(means: Callable[[OptimizerRule], object], what: str) -> Callable[[Check], Check]:
    """Decorate a check that means something for these rules only; `what` says which."""

    def mark(check: Check) -> Check:
        # A function may carry attributes; its type does not say so.
        check._where = (means, what)  # pyright: ignore[reportFunctionMemberAccess]
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
