"""Planted bugs: implementations that are wrong in one way each.

A suite is worth what it catches. The meta-tests run every fault, and the check that it names must
fail; and every check of the suite must be named by a fault at least once.
"""

from optim_conformance.faults import _memory, _persistence, _rules, _trees
from optim_conformance.faults._plant import FAULTS, Fault

__all__ = ["FAULTS", "Fault"]

# The modules are imported for what they plant.
_PLANTED = (_memory, _persistence, _rules, _trees)
