"""Planted bugs: implementations that are wrong in one way each.

A suite is worth what it catches. The meta-tests run every fault, and the check that it names must
fail; and every check of the suite must be named by a fault at least once.
"""

from optim_conformance.faults import _memory, _persistence, _rules, _trees
from optim_conformance.faults._plant import FAULTS, Fault, plant_rule
from optim_conformance.rules import RULES

__all__ = ["FAULTS", "Fault"]

# The modules are imported for what they plant.
_PLANTED = (_memory, _persistence, _rules, _trees)

for _name, _rule in RULES.items():
    for _bug in _rule.bugs:
        plant_rule(_bug.check, _name)(_bug.rule)
