"""STAC for PyTorch: sign updates on the early layers, AdamW on the last ones."""

from stac_torch._groups import param_groups
from stac_torch._layers import LayerGroup
from stac_torch._partition import STACPartition, partition_trainable_layers
from stac_torch._stac import STAC

__all__ = [
    "STAC",
    "LayerGroup",
    "STACPartition",
    "param_groups",
    "partition_trainable_layers",
]
