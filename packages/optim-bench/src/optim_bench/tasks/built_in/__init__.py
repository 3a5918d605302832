"""The built-in workloads. Importing this module loads no framework and reads no data."""

from collections.abc import Mapping
from types import MappingProxyType

from optim_bench.tasks.built_in._diamonds import DIAMONDS_MLP
from optim_bench.tasks.built_in._digits import DIGITS_CNN
from optim_bench.tasks.built_in._digits_mlp import DIGITS_NOISY, PERMUTED_DIGITS
from optim_bench.tasks.built_in._full_size import CIFAR10_CNN, GPT2_TOKENS, MNIST_CNN
from optim_bench.tasks.built_in._patches import PATCHES_DENOISE
from optim_bench.tasks.built_in._shakespeare import SHAKESPEARE_CHAR
from optim_bench.tasks.built_in._synthetic import (
    ILL_CONDITIONED_QUADRATIC,
    ROSENBROCK,
    SHIFTED_MLP,
    SHIFTED_MLP_B4,
    SHIFTED_MLP_B8,
    curvature,
)
from optim_bench.tasks.built_in._workload import SPLITS, TIERS, Array, Arrays, Target, Workload

WORKLOADS: Mapping[str, Workload] = MappingProxyType(
    {
        workload.name: workload
        for workload in (
            DIGITS_CNN,
            DIAMONDS_MLP,
            SHAKESPEARE_CHAR,
            PATCHES_DENOISE,
            PERMUTED_DIGITS,
            DIGITS_NOISY,
            MNIST_CNN,
            CIFAR10_CNN,
            GPT2_TOKENS,
            SHIFTED_MLP,
            SHIFTED_MLP_B8,
            SHIFTED_MLP_B4,
            ROSENBROCK,
            ILL_CONDITIONED_QUADRATIC,
        )
    }
)

__all__ = [
    "SPLITS",
    "TIERS",
    "WORKLOADS",
    "Array",
    "Arrays",
    "Target",
    "Workload",
    "curvature",
    "get",
]


def get(name: str) -> Workload:
    """Return a workload by its name.

    Raises:
        ValueError: there is none; the message lists what there is.
    """
    try:
        return WORKLOADS[name]
    except KeyError:
        raise ValueError(
            f"no workload named {name!r}; there are {', '.join(sorted(WORKLOADS))}"
        ) from None
