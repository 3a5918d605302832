"""An optimizer of any rule of ``stam_core``: what a file of one optimizer is built on."""

# pyright: reportPrivateImportUsage=false

from collections import namedtuple
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import fields
from inspect import signature
from typing import Any

import torch
from stam_core import Moment, Report, Rule, Statistic
from torch import Tensor, nn

from stac_torch import _namespace
from stac_torch._base import BaseOptimizer
from stac_torch._dtypes import arithmetic_dtype, complex_dtype, dtype_name, floating_dtype
from stac_torch._family import Family
from stac_torch._local import local, shard_groups
from stac_torch._names import names_of
from stac_torch._options import check_flags, check_numbers, check_parameters, checked_betas
from stac_torch._records import Flags, Slot
from stac_torch._report import aligned
from stac_torch._rule_step import Terms, step_
from stac_torch._state import new_step, state_bytes, zeros

FORMAT = 1

# What a rule's optimizer takes whether or not its signature says so.
_COMMON: dict[str, Any] = {
    "lr": 1e-3,
    "weight_decay": 0.0,
    "maximize": False,
    "stochastic_rounding": False,
    "rounding_seed": 0,
    "foreach": None,
    "capturable": False,
}
_GUARD: dict[str, Any] = {
    "nonfinite": "skip",
    "error_if_nonfinite": False,
    "max_consecutive_nonfinite": 100,
    "nonfinite_group": None,
}
_SPARED = "exclude_bias_and_norm_from_weight_decay"


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
            called = torch.compiler.is_compiling() or group["foreach"] is False or stored.is_complex
            step_(terms, members, numbers, dtype, in_place=not called)


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


class RuleOptimizer(BaseOptimizer):
    """An optimizer of one rule; a subclass has a docstring, a signature and names its rule.

    ``class STAM(RuleOptimizer, rule=stam_core.STAM, betas=("b1_base", "b2"))`` and an ``__init__``
    whose keyword arguments are the rule's hyperparameters, ``lr`` for ``learning_rate``, ``betas``
    for those named there, ``<key>_dtype`` for the storage of a moment, and any of the options that
    all optimizers have. It calls ``super().__init__(params, locals())``.
    """

    def __init_subclass__(cls, *, rule: Rule[Any], betas: tuple[str, ...] = ()) -> None:
        super().__init_subclass__()
        section = RuleSection(cls.__name__, rule, betas)
        own = {
            name: parameter.default
            for name, parameter in signature(cls.__init__).parameters.items()
            if name not in ("self", "params", _SPARED, *_GUARD)
        }
        key = f"{rule.name}_format"

        def check(group: Mapping[str, Any]) -> dict[str, Any]:
            return _checked_group(group, section)

        cls._family = Family(
            name=cls.__name__,
            sections={None: section},
            defaults={**_COMMON, **own, key: FORMAT},
            check=check,
            format=(key, FORMAT),
        )

    def __init__(self, params: Any, given: Mapping[str, Any]) -> None:
        # What locals() holds beside the arguments.
        left = ("self", "params", "__class__", _SPARED)
        options = {name: value for name, value in given.items() if name not in left}
        guard = {name: options.pop(name, default) for name, default in _GUARD.items()}
        if isinstance(params, nn.Module):
            params = list(params.named_parameters())
        if given.get(_SPARED):
            params = _spared(params)
        super().__init__(params, options, **guard)

    def describe(self) -> str:
        """Return a table of the parameters: name, entries, bytes of state.

        The bytes are those of the states that exist, and before the first step those that it will
        create.
        """
        cells = [("parameter", "entries", "state bytes")]
        total = [0, 0]
        for index, group in enumerate(self.param_groups):
            section = self._family.section(group)
            for name, p in zip(names_of(index, group), group["params"], strict=True):
                size = state_bytes(section, group, p, self.state.get(p, {}))
                total = [total[0] + p.numel(), total[1] + size]
                cells.append((name, f"{p.numel():,}", f"{size:,}"))
        cells.append(("total", f"{total[0]:,}", f"{total[1]:,}"))
        return aligned(cells, left=1)

    def diagnostics(self) -> dict[str, Report]:
        """Return what the rule measured in the last step; reading it waits for the device.

        Returns:
            By the name of each parameter that has a state: beta1, z, variance and scale, as
            numbers. Empty for a rule that keeps no statistics.
        """
        found: dict[str, Report] = {}
        for index, group in enumerate(self.param_groups):
            section = self._family.section(group)
            report = section.rule.report if isinstance(section, RuleSection) else None
            for name, p in zip(names_of(index, group), group["params"], strict=True):
                if report is not None and p in self.state:
                    values = report(self.state[p], _namespace)
                    found[name] = Report(*(float(value) for value in values))
        return found


def _checked_group(group: Mapping[str, Any], section: RuleSection) -> dict[str, Any]:
    checked = dict(group)
    if "betas" in group:
        checked["betas"] = checked_betas(group["betas"])
    values = section.values(checked)
    lr = values["learning_rate"]
    if isinstance(lr, (int, float)) and lr == 0 and not isinstance(lr, bool):
        # As a schedule may have it.
        values["learning_rate"] = 1.0
    check_numbers(section.rule.hyperparams, section.names, values)
    check_flags(checked)
    for key in checked:
        if key.endswith("_dtype"):
            checked[key] = dtype_name(key, checked[key], int8=False)
    check_parameters(checked, section)
    return checked


def _spared(params: Iterable[Any]) -> list[Any]:
    """Return groups in which tensors of fewer than two dimensions are not decayed."""
    entries: list[Any] = [params] if isinstance(params, Tensor) else list(params)
    groups = entries if entries and isinstance(entries[0], dict) else [{"params": entries}]
    split: list[Any] = []
    for group in groups:
        given = group["params"]
        members: list[Any] = [given] if isinstance(given, Tensor) else list(given)
        small = [(m[1] if isinstance(m, tuple) else m).ndim < 2 for m in members]
        for spared in (False, True):
            own = [m for m, each in zip(members, small, strict=True) if each is spared]
            if own:
                decay = {"weight_decay": 0.0} if spared else {}
                split.append({**group, **decay, "params": own})
    return split
