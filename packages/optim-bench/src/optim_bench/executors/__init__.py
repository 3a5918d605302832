"""Ways to run training: here, in pinned worker processes, or on a cluster."""

from optim_bench.executors._base import (
    DEFAULT_TRAINER,
    Executor,
    InlineExecutor,
    Trainer,
    failed_record,
    load_trainer,
)
from optim_bench.executors._devices import (
    Placement,
    available_cores,
    pin,
    visible_gpus,
    worker_environment,
)
from optim_bench.executors._make import EXECUTORS, EXTRAS, default_jobs, make_executor
from optim_bench.executors._process import ProcessExecutor

__all__ = [
    "DEFAULT_TRAINER",
    "EXECUTORS",
    "EXTRAS",
    "Executor",
    "InlineExecutor",
    "Placement",
    "ProcessExecutor",
    "Trainer",
    "available_cores",
    "default_jobs",
    "failed_record",
    "load_trainer",
    "make_executor",
    "pin",
    "visible_gpus",
    "worker_environment",
]
