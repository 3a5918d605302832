"""An optimizer of any rule of ``stam_core``: what a file of one optimizer is built on."""

from collections.abc import Iterable, Mapping
from inspect import signature
from typing import Any

from stam_core import Report, Rule
from torch import Tensor, nn

from stac_torch import _namespace
from stac_torch._base import BaseOptimizer
from stac_torch._dtypes import dtype_name
from stac_torch._family import Family
from stac_torch._names import names_of
from stac_torch._options import check_flags, check_numbers, check_parameters, checked_betas
from stac_torch._report import aligned
from stac_torch._rule_section import RuleSection
from stac_torch._state import state_bytes

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
    "max_grad_norm": None,
    "write_clipped": False,
}
_SPARED = "exclude_bias_and_norm_from_weight_decay"


class RuleOptimizer(BaseOptimizer):
    """An optimizer of one rule; a subclass has a docstring, a signature and names its rule.

    ``class STAM(RuleOptimizer, rule=stam_core.STAM, betas=("b1_base", "b2"))`` and an ``__init__``
    whose keyword arguments are the rule's hyperparameters, ``lr`` for ``learning_rate``, ``betas``
    for those named there, ``<key>_dtype`` for the storage of a moment, and any of the options that
    all optimizers have. It calls ``super().__init__(params, locals())``.
    """

    def __init_subclass__(
        cls, *, rule: Rule[Any] | None = None, betas: tuple[str, ...] = ()
    ) -> None:
        super().__init_subclass__()
        if rule is None:
            # A user's subclass, or that of a wrapper: it is the same optimizer.
            return
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
        """Return a table of the parameters: name, form, entries, bytes of state.

        ``form`` says how the next step is taken, and what stands below why it is no kernel. The
        bytes are those of the states that exist, and before the first step those that it will
        create.
        """
        cells = [("parameter", "form", "entries", "state bytes")]
        forms = self._forms()
        total = [0, 0]
        for index, group in enumerate(self.param_groups):
            section = self._family.section(group)
            for name, p in zip(names_of(index, group), group["params"], strict=True):
                size = state_bytes(section, group, p, self.state.get(p, {}))
                total = [total[0] + p.numel(), total[1] + size]
                form = forms[p].name if p in forms else ""
                cells.append((name, form, f"{p.numel():,}", f"{size:,}"))
        cells.append(("total", "", f"{total[0]:,}", f"{total[1]:,}"))
        reasons = dict.fromkeys(f"{form.name}: {form.why}" for form in forms.values())
        return "\n".join([aligned(cells, left=2), *reasons])

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
            checked[key] = dtype_name(key, checked[key])
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
