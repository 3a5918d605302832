"""The statistics, for pairs of your own: the public name of `optim_bench.results.stats`."""

from optim_bench.results.stats import *  # noqa: F403
from optim_bench.results.stats import __all__ as __all__
