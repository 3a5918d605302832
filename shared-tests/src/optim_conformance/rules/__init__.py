"""One file per optimizer. Every module in this folder with a `RULE` is one; nothing lists them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pkgutil import iter_modules

from optim_conformance import adapter
from optim_conformance.cases import Case
from optim_conformance.rule import OptimizerRule, Slot

_MODULES = sorted(module.name for module in iter_modules(__path__))

RULES: Mapping[str, OptimizerRule] = {
    name: import_module(f"{__name__}.{name}").RULE.named(name) for name in _MODULES
}
"""Registry names, which are the names of the files, and their records."""

SLOTS: Mapping[str, Slot] = {slot.name: slot for rule in RULES.values() for slot in rule.slots}
"""Slots by name. What a name means and how exact it is does not differ between rules."""

CAPABILITIES: Mapping[str, str] = {
    **adapter.CAPABILITIES,
    **{word: meaning for rule in RULES.values() for word, meaning in rule.capabilities.items()},
}
"""Every capability that an adapter may declare."""


def plain_case(opt: str) -> Case:
    """Return the case of `opt` that structural checks use."""
    return RULES[opt].plain_case()
