"""The suite of one optimizer implementation."""

from optim_conformance._codes import CodeChecks
from optim_conformance._contract import ContractChecks
from optim_conformance._honesty import Honest
from optim_conformance._hyperparameters import HyperparameterChecks
from optim_conformance._learning import LearningChecks
from optim_conformance._nonfinite import NonfiniteChecks
from optim_conformance._ownership import OwnershipChecks
from optim_conformance._persistence import PersistenceChecks
from optim_conformance._properties import PropertyChecks
from optim_conformance._sampling import SamplingChecks
from optim_conformance._storage import StorageChecks
from optim_conformance._structure import StructureChecks
from optim_conformance._trajectory import TrajectoryChecks


class OptimizerConformance(
    TrajectoryChecks,
    StructureChecks,
    OwnershipChecks,
    StorageChecks,
    CodeChecks,
    SamplingChecks,
    HyperparameterChecks,
    PersistenceChecks,
    NonfiniteChecks,
    PropertyChecks,
    LearningChecks,
    ContractChecks,
    Honest,
    suite=True,
):
    """Every check; a package subclasses it once per adapter and sets `adapter`.

    Example:
        class TestNumpyCore(OptimizerConformance):
            adapter = NumpyAdapter()
    """
