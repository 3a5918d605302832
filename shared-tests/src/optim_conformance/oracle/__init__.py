"""The independent oracle: float64 NumPy, written from the formulas of the optimizers' contract.

It imports nothing that is under test, so that a mistake in the shared core cannot hide here. The
rules say their equations in their docstrings and number them; each line of code names its number.
"""

from optim_conformance.oracle._adamw import AdamW
from optim_conformance.oracle._sign import Lion, Sign
from optim_conformance.oracle._stam import Stam
from optim_conformance.oracle._stam_lite import StamLite
from optim_conformance.oracle._tree import Oracle, rules_for

__all__ = ["AdamW", "Lion", "Oracle", "Sign", "Stam", "StamLite", "rules_for"]
