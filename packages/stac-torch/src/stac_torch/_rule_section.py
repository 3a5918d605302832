"""The update of one rule of ``stam_core``, and the state that it keeps for a parameter."""

# pyright: reportPrivateImportUsage=false
# The multi-tensor functions have no public names; torch's own optimizers call them so.

from collections import namedtuple
from collections.abc import Mapping, MutableMapping
from dataclasses import fields
from typing import Any

import torch
from stam_core import Moment, Rule, Statistic
from torch import Tensor

from stac_torch._dtypes import arithmetic_dtype, complex_dtype, floating_dtype
from stac_torch._forms import is_looped, rule_form
from stac_torch._local import local, shard_groups
from stac_torch._records import Flags, Slot
from stac_torch._report import Form
from stac_torch._rule_step import step_
from stac_torch._state import new_step, zeros
from stac_torch._terms import Terms


class RuleSection:
    """The update of one rule.

    Args:
        title: What messages call it.
        rule: The rule.
        betas: The hyperparameters that ``betas`` of a group holds; empty without such an option.
    """

    def __init__(self, title: str, rule: Rule[Any], betas: tuple[str, ...]) -> None:
        self.title = title
        self.rule = rule
        self.names = {name: f"betas[{i}]" for i, name in enumerate(betas)} | {"learning_rate": "lr"}
        self.keys = frozenset(
            {"step", *(m.torch for m in rule.moments), *(s.name for s in rule.statistics)}
        )
        self.numbers = frozenset({"step", *(s.name for s in rule.statistics)})
        self.reals = frozenset(m.torch for m in rule.moments if m.real)
        self._fields = {f.name: f.default for f in fields(rule.hyperparams)}
        # Read by name, like the class of the rule, but made without its checks.
        self._numbers = namedtuple("Numbers", tuple(self._fields))

    def values(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """Return the hyperparameters of a group by the rule's names."""
        found: dict[str, Any] = {}
        for name, default in self._fields.items():
            called = self.names.get(name, name)
            if called.startswith("betas["):
                found[name] = group["betas"][int(called[6])]
            else:
                found[name] = group.get(called, default)
        return found

    def moments(self, group: Mapping[str, Any]) -> tuple[Moment, ...]:
        """Return the moments that are kept under a group's options."""
        return self.rule.moments_of(self._hp(group))

    def _hp(self, group: Mapping[str, Any]) -> Any:
        given = self.values(group)
        given["learning_rate"] = None  # It may be a tensor, and no function of a rule reads it.
        return self._numbers(**given)

    def check(self, group: Mapping[str, Any], parameter: Tensor) -> None:
        """Raise ValueError if a parameter cannot have the state that its group asks for."""
        for moment in self.moments(group):
            _moment_dtype(moment, group, parameter)
        if group.get("stat_sample") is not None and shard_groups(parameter):
            msg = (
                f"stat_sample={group['stat_sample']} samples whole tensors, and of a parameter of "
                f"shape {tuple(parameter.shape)} each rank holds a part: use stat_sample=None"
            )
            raise ValueError(msg)

    def new_state(self, group: Mapping[str, Any], parameter: Tensor) -> dict[str, Tensor]:
        """Return the state of a parameter before its first step; empty if it needs none."""
        self.check(group, parameter)
        state: dict[str, Tensor] = {}
        self.complete_state(group, parameter, state)
        return state

    def complete_state(
        self, group: Mapping[str, Any], parameter: Tensor, state: MutableMapping[str, Tensor]
    ) -> None:
        """Give a state what the group's options ask for now and did not when it was made."""
        if len(state) == len(self.keys):
            return
        if "step" not in state:
            state["step"] = new_step(group, parameter)
        for moment in self.moments(group):
            if moment.torch not in state:
                state[moment.torch] = zeros(parameter, _moment_dtype(moment, group, parameter))
        if self.rule.statistics and self.rule.statistics[0].name not in state:
            values = self.values(group)
            for statistic in self.rule.statistics:
                state[statistic.name] = _initial(statistic, values, parameter)

    def required(self, group: Mapping[str, Any], state: Mapping[str, Any]) -> set[str]:
        """Return the keys that a saved state must have."""
        del state
        statistics = {s.name for s in self.rule.statistics}
        return {"step", *(m.torch for m in self.moments(group))} | statistics

    def form(self, group: Mapping[str, Any], slots: list[Slot], *, tallied: bool) -> Form:
        """Return the form of the steps to come."""
        del tallied
        return rule_form(group, slots)

    def step_(self, group: Mapping[str, Any], slots: list[Slot], flags: Flags) -> None:
        """Take one step."""
        steps = [slot.state["step"] for slot in slots]
        if flags.skip is None:
            torch._foreach_add_(steps, 1)
        else:
            for step in steps:
                step.add_(flags.skip.logical_not())
        lr = group["lr"].reshape(()) if isinstance(group["lr"], Tensor) else group["lr"]
        hp = self._hp(group)
        terms = Terms(
            rule=self.rule,
            hp=hp,
            moments=tuple((m.name, m.torch) for m in self.rule.moments_of(hp)),
            weight_decay=group["weight_decay"],
            maximize=group["maximize"] and "maximize" not in self._fields,
            skips=flags.skip is not None,
            scaled=flags.grad_scale is not None,
            clipped=flags.clip is not None,
        )
        alike: dict[Any, list[Slot]] = {}
        for slot in slots:
            alike.setdefault((slot.param.device, slot.param.dtype), []).append(slot)
        for (device, stored), members in alike.items():
            dtype = arithmetic_dtype(stored)
            if stored.is_complex and not self.rule.by_parts:
                dtype = complex_dtype(dtype)
            numbers = {"lr": lr}
            if flags.skip is not None:
                numbers["skip"] = flags.skip.to(device)
            if flags.grad_scale is not None:
                numbers["grad_scale"] = flags.grad_scale.reshape(()).to(device)
            if flags.clip is not None:
                numbers["clip"] = flags.clip.to(device, floating_dtype(dtype))
            step_(terms, members, numbers, dtype, in_place=not is_looped(group, stored))


def _moment_dtype(moment: Moment, group: Mapping[str, Any], parameter: Tensor) -> torch.dtype:
    """Return the dtype in which a moment of a parameter is stored.

    Raises:
        ValueError: A complex moment is to be stored in 16 bits.
    """
    option = f"{moment.torch}_dtype"
    real = floating_dtype(parameter.dtype)
    if group.get(option) is not None:
        real = getattr(torch, group[option])
    elif moment.wide:
        real = arithmetic_dtype(real)
    if moment.real or not parameter.is_complex():
        return real
    if real not in (torch.float32, torch.float64):
        msg = (
            f"{option}={group.get(option)!r} cannot hold the moment of a complex parameter of "
            f"shape {tuple(parameter.shape)}: put it into a group with {option}=None"
        )
        raise ValueError(msg)
    return complex_dtype(real)


def _initial(statistic: Statistic, values: Mapping[str, Any], parameter: Tensor) -> Tensor:
    dtype = arithmetic_dtype(floating_dtype(parameter.dtype))
    if statistic.complex and parameter.is_complex():
        dtype = complex_dtype(dtype)
    start = statistic.initial
    number = values[start] if isinstance(start, str) else start
    return torch.full((), number, dtype=dtype, device=local(parameter).device)
