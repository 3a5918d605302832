"""STAM and STAMLite for JAX: AdamW whose beta1 follows the gradient's variance.

``stam`` and ``stam_lite`` are optax optimizers; ``scale_by_stam`` and ``scale_by_stam_lite`` their
parts without learning rate and weight decay. :mod:`stam_jax.descent` holds the class interface of
the ancestor's page.
"""

from stam_jax import descent
from stam_jax._diagnostics import LeafDiagnostics, diagnostics
from stam_jax._layers import LastLayers
from stam_jax._rounding import apply_updates, round_stochastically
from stam_jax._sharding import state_shardings
from stam_jax._sign import ScaleBySignMomentumState, scale_by_sign_momentum
from stam_jax._stac import describe, stac
from stam_jax._stam import ScaleByStamState, scale_by_stam, stam
from stam_jax._stam_lite import ScaleByStamLiteState, scale_by_stam_lite, stam_lite
from stam_jax._state_dict import FORMAT_VERSION, state_from_dict, state_to_dict

__version__ = "0.1.0"

__all__ = [
    "FORMAT_VERSION",
    "LastLayers",
    "LeafDiagnostics",
    "ScaleBySignMomentumState",
    "ScaleByStamLiteState",
    "ScaleByStamState",
    "apply_updates",
    "descent",
    "describe",
    "diagnostics",
    "round_stochastically",
    "scale_by_sign_momentum",
    "scale_by_stam",
    "scale_by_stam_lite",
    "stac",
    "stam",
    "stam_lite",
    "state_from_dict",
    "state_shardings",
    "state_to_dict",
]
