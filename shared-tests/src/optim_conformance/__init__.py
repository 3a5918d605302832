"""The conformance suites every optimizer package runs.

Names load on first use: the pytest plugin lives in this package, and a session that runs none of
the suites must not pay for them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optim_conformance.adapter import OptimizerAdapter, Run, Tree
    from optim_conformance.cases import Case
    from optim_conformance.checkpoint import CheckpointAdapter, CheckpointConformance
    from optim_conformance.exchange import CheckpointExchange
    from optim_conformance.optimizer import OptimizerConformance
    from optim_conformance.oracle import Oracle
    from optim_conformance.workload import Pair, Training, WorkloadAdapter, WorkloadConformance

_HOMES = {
    "Case": "cases",
    "CheckpointAdapter": "checkpoint",
    "CheckpointConformance": "checkpoint",
    "CheckpointExchange": "exchange",
    "OptimizerAdapter": "adapter",
    "OptimizerConformance": "optimizer",
    "Oracle": "oracle",
    "Pair": "workload",
    "Run": "adapter",
    "Training": "workload",
    "Tree": "adapter",
    "WorkloadAdapter": "workload",
    "WorkloadConformance": "workload",
}

__all__ = [
    "Case",
    "CheckpointAdapter",
    "CheckpointConformance",
    "CheckpointExchange",
    "OptimizerAdapter",
    "OptimizerConformance",
    "Oracle",
    "Pair",
    "Run",
    "Training",
    "Tree",
    "WorkloadAdapter",
    "WorkloadConformance",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'optim_conformance' has no attribute {name!r}")
    return getattr(import_module(f"optim_conformance.{_HOMES[name]}"), name)
