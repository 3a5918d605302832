"""The optimizers that this package brings."""

from collections.abc import Mapping
from types import MappingProxyType

from optim_bench.optimizers._info import OptimizerInfo
from optim_bench.optimizers._jax_entries import ENTRIES as _JAX
from optim_bench.optimizers._torch_entries import ENTRIES as _TORCH
from optim_bench.optimizers._torch_entries import OPTIONAL as _TORCH_OPTIONAL

OPTIMIZERS: Mapping[str, OptimizerInfo] = MappingProxyType(
    {info.key: info for info in (*_JAX, *_TORCH)}
)
# Known, but entered only where the distribution that each requires is installed.
OPTIONAL: Mapping[str, OptimizerInfo] = MappingProxyType(
    {info.key: info for info in _TORCH_OPTIONAL}
)
