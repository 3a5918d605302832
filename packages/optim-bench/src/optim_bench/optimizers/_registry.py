"""The optimizers that this package brings."""

from collections.abc import Mapping
from types import MappingProxyType

from optim_bench.optimizers._info import OptimizerInfo
from optim_bench.optimizers._jax_entries import ENTRIES as _JAX
from optim_bench.optimizers._torch_entries import ENTRIES as _TORCH

OPTIMIZERS: Mapping[str, OptimizerInfo] = MappingProxyType(
    {info.key: info for info in (*_JAX, *_TORCH)}
)
