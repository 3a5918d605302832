"""The NumPy driver held to the float64 oracle."""

import pickle

import numpy as np
import stam_core.reference
from optim_conformance import OptimizerConformance

DRIVERS = {"stam": stam_core.reference.STAM, "stam_lite": stam_core.reference.STAMLite}
OWN_SLOTS = ("s/",)


class NumpyRun:
    def __init__(self, opt, hparams, params):
        self.again = (opt, hparams)
        hparams = dict(hparams)
        hparams.pop("nonfinite", None)
        self.driver = DRIVERS[opt](**hparams)
        self.leaves = {name: np.array(p) for name, p in params.items()}
        self.slots = self.driver.init(self.leaves)

    def step(self, grads, *, lr=None):
        self.leaves, self.slots = self.driver.step(self.leaves, grads, self.slots, learning_rate=lr)

    def params(self):
        return {name: np.array(p) for name, p in self.leaves.items()}

    def state(self):
        return {k: np.array(v) for k, v in self.slots.items() if not k.startswith(OWN_SLOTS)}

    def save(self):
        return pickle.dumps((self.leaves, self.slots))

    def restore(self, blob):
        run = NumpyRun(*self.again, {})
        run.leaves, run.slots = pickle.loads(blob)
        return run

    def compilations(self):
        return None


class NumpyAdapter:
    name = "stam-core reference"
    framework = "numpy"
    capabilities = frozenset(
        {"f64", "digits", "complex", "resume", "lr", "corrected", "stat_sample", "parity"}
    )

    def optimizers(self):
        return frozenset(DRIVERS)

    def start(self, opt, hparams, params, *, dtype):
        return NumpyRun(opt, hparams, params)


class TestReferenceDriver(OptimizerConformance):
    adapter = NumpyAdapter()
