"""The suite of one optimizer implementation."""

from optim_conformance._trajectory import TrajectoryChecks


class OptimizerConformance(TrajectoryChecks):
    """Every check; a package subclasses it once per adapter and sets `adapter`.

    Example:
        class TestNumpyCore(OptimizerConformance):
            adapter = NumpyAdapter()
    """
