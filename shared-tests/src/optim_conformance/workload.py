"""The suite of a benchmark's workloads: the same problem in every framework, the same every time.

An adapter serves a workload's arrays, and trains it. The suite knows no model and no framework.
"""

from optim_conformance._honesty import Honest
from optim_conformance._workload_base import Pair, Training, WorkloadAdapter
from optim_conformance._workload_data import DataChecks
from optim_conformance._workload_training import TrainingChecks

__all__ = ["Pair", "Training", "WorkloadAdapter", "WorkloadConformance"]


class WorkloadConformance(DataChecks, TrainingChecks, Honest, suite=True):
    """Every check; a benchmark subclasses it once and sets `adapter`."""
