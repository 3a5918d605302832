"""The conformance suites every optimizer package runs."""

from optim_conformance.adapter import OptimizerAdapter, Run, Tree
from optim_conformance.cases import Case
from optim_conformance.optimizer import OptimizerConformance
from optim_conformance.oracle import Oracle

__all__ = ["Case", "OptimizerAdapter", "OptimizerConformance", "Oracle", "Run", "Tree"]
