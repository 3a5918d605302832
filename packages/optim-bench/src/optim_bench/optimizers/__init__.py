"""The optimizers under comparison. Importing this module loads no framework."""

from optim_bench.optimizers._calls import FactoryError, call_factory, check_call
from optim_bench.optimizers._info import (
    OptimizerInfo,
    Parameter,
    decay,
    learning_rate,
    non_negative,
    positive,
)
from optim_bench.optimizers._resolve import (
    ENTRY_POINT_GROUP,
    OPTIMIZERS,
    OPTIONAL,
    Discovery,
    discover,
    enter_optimizer,
    is_object,
    resolve,
)

__all__ = [
    "ENTRY_POINT_GROUP",
    "OPTIMIZERS",
    "OPTIONAL",
    "Discovery",
    "FactoryError",
    "OptimizerInfo",
    "Parameter",
    "call_factory",
    "check_call",
    "decay",
    "discover",
    "enter_optimizer",
    "is_object",
    "learning_rate",
    "non_negative",
    "positive",
    "resolve",
]
