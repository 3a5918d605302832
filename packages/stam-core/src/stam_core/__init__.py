"""The update rules of STAM, STAMLite and STAC, written once over the Python array API.

Every rule is a set of pure functions of arrays: the namespace is an argument (``xp=``), and so is
the mean that the statistics use (``mean=``). Importing this package loads NumPy and no
deep-learning framework.
"""

from stam_core import int8, noise
from stam_core._means import local_mean, sample_stride, strided_sample
from stam_core._names import SLOT_BY_NAME, SLOTS, SlotName
from stam_core._stac import (
    HYBRID_SIGN_LR_SCALE,
    ROLES,
    AdamWState,
    SignState,
    STACHyperparams,
    STACReference,
    STACRole,
    adamw_direction,
    adamw_update,
    init_adamw,
    init_sign,
    sign_update,
    sign_with_nan,
    update_sign_moment,
)
from stam_core._stam import (
    PARITY,
    STAMHyperparams,
    STAMState,
    STAMStatistics,
    clip_beta1,
    decayed_step,
    direction,
    init_state,
    normalised_variance,
    residual_magnitude,
    residual_means,
    step,
    update_moments,
    update_statistics,
    zero_nonfinite,
)
from stam_core._stam_lite import (
    STAMLiteHyperparams,
    STAMLiteState,
    STAMLiteStatistics,
    gradient_means,
    init_lite_state,
    lite_direction,
    lite_step,
    update_lite_statistics,
    update_momentum,
)
from stam_core._typing import AS_WRITTEN, Exact

__version__ = "0.1.0"

__all__ = [
    "AS_WRITTEN",
    "HYBRID_SIGN_LR_SCALE",
    "PARITY",
    "ROLES",
    "SLOTS",
    "SLOT_BY_NAME",
    "AdamWState",
    "Exact",
    "STACHyperparams",
    "STACReference",
    "STACRole",
    "STAMHyperparams",
    "STAMLiteHyperparams",
    "STAMLiteState",
    "STAMLiteStatistics",
    "STAMState",
    "STAMStatistics",
    "SignState",
    "SlotName",
    "adamw_direction",
    "adamw_update",
    "clip_beta1",
    "decayed_step",
    "direction",
    "gradient_means",
    "init_adamw",
    "init_lite_state",
    "init_sign",
    "init_state",
    "int8",
    "lite_direction",
    "lite_step",
    "local_mean",
    "noise",
    "normalised_variance",
    "residual_magnitude",
    "residual_means",
    "sample_stride",
    "sign_update",
    "sign_with_nan",
    "step",
    "strided_sample",
    "update_lite_statistics",
    "update_moments",
    "update_momentum",
    "update_sign_moment",
    "update_statistics",
    "zero_nonfinite",
]
