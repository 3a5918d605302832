"""STAC, STAM and STAMLite for PyTorch, on one base optimizer."""

from stac_torch._groups import param_groups
from stac_torch._layers import LayerGroup
from stac_torch._partition import STACPartition, partition_trainable_layers
from stac_torch._stac import STAC
from stac_torch._stam import STAM
from stac_torch._stam_lite import STAMLite

__all__ = [
    "STAC",
    "STAM",
    "LayerGroup",
    "STACPartition",
    "STAMLite",
    "param_groups",
    "partition_trainable_layers",
]
