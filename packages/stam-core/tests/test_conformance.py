"""The NumPy driver held to the float64 oracle."""

import pickle

import numpy as np
from optim_conformance import OptimizerConformance
from optim_conformance.rules import RULES as KNOWN
from stam_core import RULES, reference

OWN_SLOTS = ("s/",)


def driver(opt, hparams):
    return reference.STAC(**hparams) if opt == "stac" else reference.Driver(RULES[opt], **hparams)


class NumpyRun:
    def __init__(self, opt, hparams, params):
        self.again = (opt, hparams)
        self.counted = KNOWN[opt].counted(hparams, params)
        hparams = dict(hparams)
        hparams.pop("nonfinite", None)
        self.driver = driver(opt, hparams)
        self.leaves = {name: np.array(p) for name, p in params.items()}
        self.slots = self.driver.init(self.leaves)

    def step(self, grads, *, lr=None):
        # A rule has no policy; leaving out a bad step is that of STAC.
        if self.again[0] == "stac" and not all(np.isfinite(g).all() for g in grads.values()):
            return
        self.leaves, self.slots = self.driver.step(self.leaves, grads, self.slots, learning_rate=lr)

    def params(self):
        return {name: np.array(p) for name, p in self.leaves.items()}

    def state(self):
        own = OWN_SLOTS if self.counted else (*OWN_SLOTS, "count")
        return {k: np.array(v) for k, v in self.slots.items() if not k.startswith(own)}

    def save(self):
        return pickle.dumps((self.leaves, self.slots))

    def restore(self, blob):
        run = NumpyRun(*self.again, self.leaves)
        run.leaves, run.slots = pickle.loads(blob)
        return run

    def compilations(self):
        return None


class NumpyAdapter:
    name = "stam-core reference"
    framework = "numpy"
    capabilities = frozenset(
        {"f64", "digits", "complex", "resume", "lr", "corrected", "stat_sample", "parity"}
        | {"amsgrad", "maximize"}
    )

    def optimizers(self):
        return frozenset(KNOWN) & {*RULES, "stac"}

    def start(self, opt, hparams, params, *, dtype):
        return NumpyRun(opt, hparams, params)


class TestReferenceDriver(OptimizerConformance):
    adapter = NumpyAdapter()
