"""STAC for PyTorch: sign updates on the early layers, AdamW on the last ones."""

from stac_torch._groups import param_groups
from stac_torch._layers import LayerGroup
from stac_torch._optimizer import STAC
from stac_torch._partition import STACPartition, partition_trainable_layers

__version__ = "0.1.0"

__all__ = [
    "STAC",
    "LayerGroup",
    "STACPartition",
    "param_groups",
    "partition_trainable_layers",
]
