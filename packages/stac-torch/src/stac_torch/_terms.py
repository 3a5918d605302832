"""The functions of a rule's step, of the entries of tensors and of numbers of each.

They are recorded as a program, or called as they are.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import torch
from stam_core import Rule, decayed_step
from torch import Tensor

from stac_torch import _namespace
from stac_torch._program import Program


class Terms(NamedTuple):
    """What a step of one group has beside tensors; hashable, because programs are kept by it.

    Attributes:
        rule: The rule.
        hp: Its hyperparameters, read by name.
        moments: The key of each moment in a parameter's state, by the rule's name.
        weight_decay: Decoupled decay.
        maximize: Whether to turn the gradient.
        skips: Whether there is a flag that says to leave everything as it is.
        scaled: Whether a gradient scaler left its factor in the gradients.
        clipped: Whether there is a factor that clips them.
    """

    rule: Rule[Any]
    hp: Any
    moments: tuple[tuple[str, str], ...]
    weight_decay: float
    maximize: bool
    skips: bool
    scaled: bool
    clipped: bool


def prepared(terms: Terms, values: Mapping[str, Any], xp: Any) -> Any:
    """Return the gradient that the rule goes on with."""
    g = values["grad"]
    g = g / values["grad_scale"] if terms.scaled else g
    g = g * values["clip"] if terms.clipped else g
    g = -g if terms.maximize else g
    return terms.rule.prepare(g, terms.hp, xp=xp)


def means(
    terms: Terms, values: Mapping[str, Any], xp: Any, mean: Callable[[Any], Any]
) -> tuple[Any, ...]:
    """Return the means that the rule takes over a tensor."""
    rule = terms.rule
    g = prepared(terms, values, xp)
    observed = rule.observe(g, {name: values[name] for name in rule.reads}, terms.hp, xp=xp)
    return rule.means(observed, xp=xp, mean=mean)


def update(terms: Terms, values: Mapping[str, Any], xp: Any) -> dict[str, Any]:
    """Return parameter and moments after the step, by name."""
    rule = terms.rule
    g = prepared(terms, values, xp)
    moments = {name: values[name] for name, _ in terms.moments}
    statistics = {s.name: values[s.name] for s in rule.statistics}
    d, new = rule.update(g, moments, statistics, values["count"], terms.hp, xp=xp)
    new["param"] = decayed_step(values["param"], d, values["lr"], terms.weight_decay)
    if terms.skips:
        new = {name: xp.where(values["skip"], values[name], value) for name, value in new.items()}
    return new


@lru_cache(maxsize=64)
def programs(terms: Terms, dtype: torch.dtype) -> tuple[Program, Program]:
    """Return the two functions recorded, for tensors of a real dtype."""
    rule = terms.rule
    seen = {"count": torch.int64, "lr": dtype}
    seen |= {"skip": torch.bool} if terms.skips else {}
    seen |= {"grad_scale": dtype} if terms.scaled else {}
    seen |= {"clip": dtype} if terms.clipped else {}
    first = Program(("grad", *rule.reads), seen, dtype)
    sums = means(terms, first.inputs, first, first.total)
    seen |= {s.name: dtype for s in rule.statistics}
    second = Program(("grad", "param", *(name for name, _ in terms.moments)), seen, dtype)
    new = update(terms, second.inputs, second)
    return first.close({}, sums), second.close(new)


class Call:
    """A function called on each piece: what a :class:`Program` computes, operation by operation.

    Args:
        wholes: Names of the inputs that have the entries of a tensor.
        function: From all inputs by name, and a sum over each tensor, to sums or new values.
    """

    def __init__(
        self,
        wholes: Sequence[str],
        function: Callable[[Mapping[str, Any], Callable[[Tensor], Tensor]], Any],
    ) -> None:
        self.wholes = tuple(wholes)
        self._function = function

    def prepare(self, numbers: Mapping[str, Any]) -> dict[str, Any]:
        """Return what :meth:`run` needs of the numbers."""
        return dict(numbers)

    def run(
        self,
        wholes: Mapping[str, Tensor],
        numbers: Mapping[str, Any],
        total: Callable[[Tensor], Tensor],
    ) -> list[Tensor]:
        """Compute on one piece; new values replace the inputs, sums are returned."""
        result = self._function({**numbers, **wholes}, total)
        if not isinstance(result, dict):
            return list(result)
        for name, value in result.items():
            wholes[name].copy_(value)
        return []


Form: TypeAlias = "Program | Call"


def calls(terms: Terms) -> tuple[Call, Call]:
    """Return the two functions as they are, for complex tensors, compilers and comparison."""
    return (
        Call(("grad", *terms.rule.reads), lambda v, total: means(terms, v, _namespace, total)),
        Call(
            ("grad", "param", *(name for name, _ in terms.moments)),
            lambda v, _: update(terms, v, _namespace),
        ),
    )
