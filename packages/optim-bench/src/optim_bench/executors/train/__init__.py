"""Training runs. Importing this module loads no framework; `train` imports the one it needs."""

from optim_bench.executors.train._session import (
    FRAMEWORK_MODULES,
    MissingExtraError,
    Session,
    open_session,
    require_framework,
    try_factory,
)
from optim_bench.executors.train._train import environment, train

__all__ = [
    "FRAMEWORK_MODULES",
    "MissingExtraError",
    "Session",
    "environment",
    "open_session",
    "require_framework",
    "train",
    "try_factory",
]
