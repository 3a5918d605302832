"""A correct implementation passes the whole suite."""

from optim_conformance import OptimizerConformance
from optim_conformance.numpy_adapter import NumpyAdapter


class TestNumpyAdapter(OptimizerConformance):
    adapter = NumpyAdapter()
