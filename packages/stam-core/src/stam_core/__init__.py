"""The update rules of STAM, STAMLite and STAC, written once over the Python array API.

Every rule is a set of pure functions of arrays: the namespace is an argument (``xp=``), and so is
the mean that the statistics use (``mean=``). Importing this package loads NumPy and no
deep-learning framework.
"""

from stam_core import int4, int8, noise
from stam_core._adamw import ADAMW, AdamWHyperparams
from stam_core._hyperparams import Hyperparams
from stam_core._means import local_mean, sample_stride, strided_sample
from stam_core._rule import (
    Moment,
    Report,
    Rule,
    Slots,
    Statistic,
    decayed_step,
    zero_nonfinite,
)
from stam_core._sign import SIGN, SignHyperparams
from stam_core._stac import HYBRID_SIGN_LR_SCALE, ROLES, STACHyperparams, STACRole
from stam_core._stam import PARITY, STAM, STAMHyperparams
from stam_core._stam_lite import STAM_LITE, STAMLiteHyperparams
from stam_core._typing import AS_WRITTEN, Exact

RULES = {rule.name: rule for rule in (STAM, STAM_LITE, SIGN, ADAMW)}
"""Every rule, by name."""

SLOTS = {"count": "step"} | {
    slot.name: slot.torch if isinstance(slot, Moment) else slot.name
    for rule in RULES.values()
    for slot in (*rule.moments, *rule.statistics)
}
"""The names of all slots of state here and in JAX, to those in torch."""

__version__ = "0.1.0"

__all__ = [
    "ADAMW",
    "AS_WRITTEN",
    "HYBRID_SIGN_LR_SCALE",
    "PARITY",
    "ROLES",
    "RULES",
    "SIGN",
    "SLOTS",
    "STAM",
    "STAM_LITE",
    "AdamWHyperparams",
    "Exact",
    "Hyperparams",
    "Moment",
    "Report",
    "Rule",
    "STACHyperparams",
    "STACRole",
    "STAMHyperparams",
    "STAMLiteHyperparams",
    "SignHyperparams",
    "Slots",
    "Statistic",
    "decayed_step",
    "int4",
    "int8",
    "local_mean",
    "noise",
    "sample_stride",
    "strided_sample",
    "zero_nonfinite",
]
