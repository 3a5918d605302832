"""stam and stam_lite held to the float64 oracle, eagerly and under jit."""

import pickle
from contextlib import contextmanager
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import stam_jax
from optim_conformance import OptimizerConformance

OPTIMIZERS = {"stam": stam_jax.stam, "stam_lite": stam_jax.stam_lite}
# Our first moment of a STAMLite is called by what it is: the state.
RENAMED = {"stam": {}, "stam_lite": {"mu_dtype": "state_dtype"}}


@contextmanager
def double_precision(wanted):
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", wanted)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


def own_arrays(tree):
    """Copy before JAX sees them: its own copy is made later, when the caller may have moved on."""
    return {name: jnp.asarray(np.array(array)) for name, array in tree.items()}


class Stepper:
    """A step and the number of its compilations, shared by all runs with equal settings."""

    def __init__(self, opt, hparams, jit):
        self.make = partial(OPTIMIZERS[opt], **dict(hparams))
        self.compiled = 0 if jit else None
        self.take = jax.jit(self._take) if jit else self._take

    def _take(self, leaves, opt_state, grads, rate):
        if self.compiled is not None:
            self.compiled += 1
        optimizer = self.make(**rate)
        updates, opt_state = optimizer.update(grads, opt_state, leaves)
        return optax.apply_updates(leaves, updates), opt_state


stepper = lru_cache(maxsize=None)(Stepper)


class JaxRun:
    def __init__(self, opt, hparams, params, dtype, jit):
        self.again = (opt, hparams, params, dtype, jit)
        self.double = dtype == "float64"
        own = {RENAMED[opt].get(name, name): value for name, value in hparams.items()}
        if opt == "stam_lite":
            # The suites expect a first moment in the parameter's dtype; our default is float32.
            own.setdefault("state_dtype", None)
        self.stepper = stepper(opt, tuple(sorted(own.items())), jit)
        with double_precision(self.double):
            self.leaves = own_arrays(params)
            self.opt_state = self.stepper.make().init(self.leaves)

    def step(self, grads, *, lr=None):
        with double_precision(self.double):
            rate = {} if lr is None else {"learning_rate": jnp.asarray(lr)}
            grads = own_arrays(grads)
            self.leaves, self.opt_state = self.stepper.take(
                self.leaves, self.opt_state, grads, rate
            )

    def params(self):
        return {name: np.array(p) for name, p in self.leaves.items()}

    def state(self):
        with double_precision(self.double):
            flat = stam_jax.state_to_dict(self.opt_state)
        slots = {key.removeprefix("0/"): value for key, value in flat.items() if key[:2] == "0/"}
        return {key: np.array(v) for key, v in slots.items() if not key.startswith("s/")}

    def save(self):
        with double_precision(self.double):
            return pickle.dumps((self.params(), stam_jax.state_to_dict(self.opt_state)))

    def restore(self, blob):
        run = JaxRun(*self.again)
        params, state = pickle.loads(blob)
        with double_precision(self.double):
            run.leaves = {name: jnp.asarray(p) for name, p in params.items()}
            run.opt_state = stam_jax.state_from_dict(run.opt_state, state)
        return run

    def compilations(self):
        return self.stepper.compiled


class JaxAdapter:
    framework = "jax"

    def __init__(self, *, jit):
        self.jit = jit
        self.name = "stam-jax under jit" if jit else "stam-jax, eager"
        shared = {"f64", "bf16", "f16", "complex", "resume", "lr", "corrected", "stat_sample"}
        shared |= {"parity", "mu_dtype", "propagate", "zero", "skip"}
        self.capabilities = frozenset(shared | ({"jit"} if jit else set()))

    def optimizers(self):
        return frozenset(OPTIMIZERS)

    def start(self, opt, hparams, params, *, dtype):
        return JaxRun(opt, hparams, params, dtype, self.jit)


class TestJit(OptimizerConformance):
    adapter = JaxAdapter(jit=True)


class TestEager(OptimizerConformance):
    adapter = JaxAdapter(jit=False)
