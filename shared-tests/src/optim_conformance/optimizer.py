"""The suite of one optimizer implementation."""

from optim_conformance._ownership import OwnershipChecks
from optim_conformance._structure import StructureChecks
from optim_conformance._trajectory import TrajectoryChecks


class OptimizerConformance(TrajectoryChecks, StructureChecks, OwnershipChecks):
    """Every check; a package subclasses it once per adapter and sets `adapter`.

    Example:
        class TestNumpyCore(OptimizerConformance):
            adapter = NumpyAdapter()
    """
