"""The record of one optimizer: all that the suites know of it.

A file in `rules/` builds one record and calls it `RULE`; it is found there by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from optim_conformance.cases import SHAPES, Case
from optim_conformance.ranges import NONFINITE, Range

Leaf = NDArray[Any] | np.floating[Any] | np.complexfloating[Any, Any]
"""A tensor or a per-tensor scalar, in float64 or complex128."""

Slots = dict[str, Any]
"""The state of one tensor: slot to array or scalar."""


@dataclass(frozen=True)
class Step:
    """Base of the oracle's rules: one tensor in float64, from the formulas alone.

    The fields of a rule are its hyperparameters with the contract's defaults.
    """

    counts: ClassVar[bool] = True
    """Whether the step depends on how many were taken, so that `count` is state."""

    weight_decay: float = 0.0

    @property
    def share(self) -> float:
        """Share of the learning rate that the tensor takes."""
        return 1.0

    def init(self, p: Any) -> Slots:
        """Return the state before the first step."""
        raise NotImplementedError

    def step(self, p: Any, g: Any, s: Slots, *, t: int, lr: float) -> tuple[Any, Slots]:
        """Return parameters and state after step `t`, counted from 1."""
        raise NotImplementedError

    def first_direction(self, g: Any) -> Any:
        """Return the direction of the first step: every average is then its own first term."""
        raise NotImplementedError


def mean(x: Any) -> Any:
    """Return the mean over all entries, 0 where there are none.

    Example:
        >>> float(mean(np.array([1.0, 4.0]))), float(mean(np.zeros((0, 3))))
        (2.5, 0.0)
    """
    return x.mean() if x.size else x.dtype.type(0)


@dataclass(frozen=True)
class Slot:
    """One slot of the state.

    Attributes:
        name: Canonical name; the state's key is `<name>/<leaf>`.
        bound: How far a float32 trajectory may be from the oracle, relative to the largest entry.
        reason: Why that far.
        torch: Name in the state of a torch optimizer, where it is another.
        scalar: One number per tensor; else shaped as the tensor.
        wide: At least float32, whatever the parameters are.
        real: Real for complex parameters.
        either: Stored in the parameter's dtype or wide, as the implementation likes.
        signed: An average of signed terms, which may be far below the size of its terms.
        root: A slot whose root is the size of those terms.
        idle: Its value after t steps without a gradient.
        limits: Interval of a scalar under the default hyperparameters.
    """

    name: str
    bound: float
    reason: str
    torch: str = ""
    scalar: bool = False
    wide: bool = False
    real: bool = False
    either: bool = False
    signed: bool = False
    root: str = ""
    idle: Callable[[int], float] = lambda t: 0.0
    limits: tuple[float, float] | None = None


_AVERAGE = "an average of float32 terms: a few units in the last place"
MU = Slot(
    "mu", 2e-6, _AVERAGE + "; and beta1's own error times g - m", torch="exp_avg", signed=True
)
NU = Slot("nu", 2e-6, _AVERAGE, torch="exp_avg_sq")
NU_MAX = Slot("nu_max", 2e-6, _AVERAGE, torch="max_exp_avg_sq")


def statistic(name: str, bound: float, reason: str, **options: Any) -> Slot:
    """Return the slot of one real number per tensor, at least float32."""
    return Slot(name, bound, reason, **{"scalar": True, "wide": True, "real": True, **options})


@dataclass(frozen=True)
class Bug:
    """A rule of the oracle with one bug, and the check that must find it.

    Attributes:
        check: The check, without its parameters.
        rule: Subclass of the right rule; the first line of its docstring says what is wrong.
    """

    check: str
    rule: type[Step]


@dataclass(frozen=True)
class Limit:
    """Hyperparameters under which the steps are those of another rule.

    Attributes:
        hparams: The hyperparameters.
        other: The other rule, without decay.
    """

    hparams: Mapping[str, Any]
    other: Step


@dataclass(frozen=True)
class OptimizerRule:
    """One optimizer; what has a default is for rules that need it.

    Attributes:
        step: The rule of one tensor.
        slots: All slots that a state can have, besides `count`.
        ranges: Hyperparameter to what is allowed.
        cases: Trajectories that every implementation must follow.
        golden: Those that are recorded, five steps each, with names of their own.
        bugs: What only this rule can get wrong.
        low_precision: Cases with 16-bit parameters.
        complex: Cases with complex parameters.
        steps: Makes the rule of each leaf where it is not `step(**hparams)`.
        for_leaves: Hyperparameters that a tree of these leaves needs.
        plain: Hyperparameters of the structural checks.
        nonfinite: The default policy by framework, "" for the others; empty where there is none.
        by_modulus: Complex tensors mean more to it than pairs of reals.
        scale_free: Hyperparameters under which gradients times a constant take the same steps;
            None where there are none.
        quick: Hyperparameters under which statistics forget soon.
        narrow: Hyperparameters beside `mu_dtype` of the checks of storage; None where the first
            moment cannot be stored narrower.
        coded: Hyperparameters under which all moments of the leaves `w` and `cube` are in codes.
        signs: Whether every step under `narrow` is the sign of the first moment.
        limits: What it becomes in the limit.
        peak: Learning rate from which it solves the small problems.
        capabilities: Word to meaning, for hyperparameters that an implementation may lack.
        betas: The decays that torch has as one tuple.
        renamed: Framework to hyperparameter to its name there.
        given: What implementations are given unless a case says otherwise.
        part_of: The optimizer, and the value of its `roles`, under which implementations offer it.
    """

    step: type[Step]
    slots: tuple[Slot, ...]
    ranges: Mapping[str, Range]
    cases: tuple[Case, ...]
    golden: tuple[Case, ...]
    bugs: tuple[Bug, ...]
    low_precision: tuple[Case, ...] = ()
    complex: tuple[Case, ...] = ()
    steps: Callable[[dict[str, Any], Iterable[str]], dict[str, Step]] | None = None
    for_leaves: Callable[[Iterable[str]], Mapping[str, Any]] = lambda leaves: {}
    plain: Mapping[str, Any] = field(default_factory=dict)
    nonfinite: Mapping[str, str] = field(default_factory=dict)
    by_modulus: bool = False
    scale_free: Mapping[str, Any] | None = field(default_factory=lambda: {"eps": 1e-30})
    quick: Mapping[str, Any] = field(default_factory=dict)
    narrow: Mapping[str, Any] | None = None
    coded: tuple[Mapping[str, Any], ...] = ()
    signs: bool = False
    limits: tuple[Limit, ...] = ()
    peak: float = 0.1
    capabilities: Mapping[str, str] = field(default_factory=dict)
    betas: tuple[str, ...] = ()
    renamed: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    given: Mapping[str, Any] = field(default_factory=dict)
    part_of: tuple[str, str] | None = None
    name: str = ""

    def named(self, name: str) -> OptimizerRule:
        """Return the record under its name, which its cases bear too."""
        whole = replace(self, name=name)
        if self.nonfinite:
            whole = replace(whole, ranges={**self.ranges, "nonfinite": NONFINITE})

        def owned(cases: tuple[Case, ...]) -> tuple[Case, ...]:
            return tuple(
                replace(case, optimizer=name, requires=whole.needs(case.hparams, case.schedule))
                for case in cases
            )

        tables = ("cases", "golden", "low_precision", "complex")
        return replace(whole, **{table: owned(getattr(self, table)) for table in tables})

    def needs(self, hparams: Mapping[str, Any], schedule: object = None) -> frozenset[str]:
        """Return the capabilities without which hyperparameters mean nothing."""
        words = {self.ranges[k].capability for k in hparams if k in self.ranges}
        return frozenset((words | {"lr" if schedule else ""}) - {""})

    def steps_for(self, hparams: Mapping[str, Any], leaves: Iterable[str]) -> dict[str, Step]:
        """Return the rule of each leaf.

        Raises:
            ValueError: A value is out of range, or a leaf has no rule.
            TypeError: A hyperparameter that the rule does not have.
        """
        for key, value in hparams.items():
            if key in self.ranges:
                self.ranges[key].check(key, value)
        own = {k: v for k, v in hparams.items() if k not in _TREE_WIDE}
        if self.steps is not None:
            return self.steps(own, leaves)
        return dict.fromkeys(leaves, self.step(**own))

    def counted(self, hparams: Mapping[str, Any], leaves: Iterable[str]) -> bool:
        """Tell whether `count` is state: whether the step of any leaf depends on it."""
        return any(step.counts for step in self.steps_for(hparams, leaves).values())

    def spelt(
        self, framework: str, hparams: Mapping[str, Any], leaves: Iterable[str]
    ) -> dict[str, Any]:
        """Return hyperparameters by their names in a framework, with what is given there."""
        own = {**self.given, **hparams}
        if self.part_of is not None:
            own["roles"] = dict.fromkeys(leaves, self.part_of[1])
        names = self.renamed.get(framework, {})
        return {names.get(name, name): value for name, value in own.items()}

    def default(self, hyperparameter: str) -> Any:
        """Return the contract's default of a hyperparameter of a tensor's rule."""
        steps = self.steps_for(self.for_leaves(SHAPES), SHAPES).values()
        return next(vars(step)[hyperparameter] for step in steps if hyperparameter in vars(step))

    def policy(self, framework: str) -> str:
        """Return what happens to a gradient that is not finite, unless it is chosen."""
        return self.nonfinite.get(framework, self.nonfinite.get("", "propagate"))

    def slot(self, name: str) -> Slot | None:
        """Return a slot by its name."""
        return next((slot for slot in self.slots if slot.name == name), None)

    def plain_case(self) -> Case:
        """Return the case of the structural checks: no special mode, a visible decay."""
        case = Case("plain", {"learning_rate": 1e-2, "weight_decay": 0.1}, steps=8, seed=9)
        hparams = {**case.hparams, **self.for_leaves(case.params()), **self.plain}
        return replace(case, hparams=hparams, optimizer=self.name)


_TREE_WIDE = ("learning_rate", "nonfinite", "mu_dtype", "moment_dtype")
