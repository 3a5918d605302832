"""How a bug is planted and found again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from optim_conformance.adapter import Tree
from optim_conformance.numpy_adapter import NumpyAdapter, NumpyRun
from optim_conformance.oracle import Oracle
from optim_conformance.rule import OptimizerRule
from optim_conformance.rules import RULES


@dataclass(frozen=True)
class Fault:
    """One planted bug.

    Attributes:
        name: What is wrong.
        check: The check that must fail, without its parameters.
        run: The wrong implementation.
        optimizers: Where it is planted.
    """

    name: str
    check: str
    run: type[NumpyRun]
    optimizers: frozenset[str]

    def adapter(self) -> NumpyAdapter:
        """Return an adapter that starts the wrong implementation."""
        return FaultyAdapter(self)


class FaultyAdapter(NumpyAdapter):
    """The NumPy adapter with one bug."""

    def __init__(self, fault: Fault) -> None:
        self.name, self.run, self._optimizers = fault.name, fault.run, fault.optimizers
        if fault.run.compilations is not NumpyRun.compilations:
            self.capabilities = self.capabilities | {"jit"}

    def optimizers(self) -> frozenset[str]:
        """Return where the bug is planted."""
        return self._optimizers


FAULTS: list[Fault] = []

Wrong = TypeVar("Wrong", bound=NumpyRun)


def plant(
    check: str,
    where: Callable[[OptimizerRule], object] = bool,
    strangers: tuple[str, ...] = (),
) -> Callable[[type[Wrong]], type[Wrong]]:
    """Register a run with one bug, named by the first line of its docstring.

    Args:
        check: The check that must fail.
        where: Which rules can have the bug; all of them unless given.
        strangers: Names without a rule that the adapter offers as well.
    """
    optimizers = frozenset([*strangers, *(opt for opt, rule in RULES.items() if where(rule))])

    def register(run: type[Wrong]) -> type[Wrong]:
        name = (run.__doc__ or "").partition("\n")[0].rstrip(".")
        FAULTS.append(Fault(name, check, run, optimizers))
        return run

    return register


def moments(rule: OptimizerRule) -> list[str]:
    """Return the names of a rule's tensor-shaped slots."""
    return [slot.name for slot in rule.slots if not slot.scalar]


def is_moment(opt: str, key: str) -> bool:
    """Tell whether a state's key is that of a tensor-shaped slot."""
    return key.partition("/")[0] in moments(RULES[opt])


class WrongRule(NumpyRun):
    """A run in which one rule of the oracle is replaced by a wrong one."""

    rule: ClassVar[type[Any]]

    def oracle(self, params: Tree) -> Oracle:
        """Return the oracle with the wrong rule in place of the right one."""
        oracle = super().oracle(params)
        right = type(self).rule.__bases__[0]
        oracle.rules = {
            leaf: type(self).rule(**vars(rule)) if isinstance(rule, right) else rule
            for leaf, rule in oracle.rules.items()
        }
        return oracle


def plant_rule(check: str, opt: str) -> Callable[[type[Any]], type[Any]]:
    """Register a rule with one bug, named by the first line of its docstring."""

    def register(rule: type[Any]) -> type[Any]:
        plant(check, lambda known: known.name == opt)(
            type(rule.__name__, (WrongRule,), {"rule": rule, "__doc__": rule.__doc__})
        )
        return rule

    return register
