"""Every optimizer held to the float64 oracle: eagerly, under jit, and over eight devices."""

import os
import pickle
import re
import subprocess
import sys
from collections.abc import Mapping
from contextlib import contextmanager
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import stam_jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from optim_conformance import OptimizerConformance
from optim_conformance.rules import RULES, SLOTS

# A moment or its scales, likewise.
CODED = re.compile(r"(?:^|/)((?:mu|nu|nu_max)(?:_scale)?/[^/]+)$")
# A slot with its leaf, or the count, wherever chains and partitions have put it.
SLOT = re.compile(rf"(?:^|/)(count|(?:{'|'.join(SLOTS)})/[^/]+)$")


def transformation(opt):
    """Return what makes the optimizer: the function of its name, or of that which it is part of."""
    part = RULES[opt].part_of
    return getattr(stam_jax, part[0] if part else opt, None)


def made(opt, hparams):
    """Make it; roles, which are by leaf, were made hashable."""
    return partial(
        transformation(opt),
        **{k: dict(v) if isinstance(v, tuple) else v for k, v in hparams},
    )


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

    def __init__(self, opt, hparams, jit, place):
        self.make = made(opt, hparams)
        self.place = place
        self.compiled = 0 if jit else None
        self.take = jax.jit(self._take) if jit else self._take

    def _take(self, leaves, opt_state, grads, rate):
        if self.compiled is not None:
            self.compiled += 1
        optimizer = self.make(**rate)
        updates, opt_state = optimizer.update(grads, opt_state, leaves)
        return self.place(optimizer, optax.apply_updates(leaves, updates), opt_state)


stepper = lru_cache(maxsize=None)(Stepper)


def one_device(optimizer, leaves, opt_state):
    return leaves, opt_state


def eight_devices(optimizer, leaves, opt_state):
    """Spread each leaf and its moments over the first dimension that four devices divide."""
    if not leaves:
        return leaves, opt_state
    mesh = Mesh(np.asarray(jax.devices()).reshape(2, 4), ("copies", "shards"))

    def sharding(leaf):
        divided = [bool(n) and n % 4 == 0 for n in leaf.shape]
        first = divided.index(True) if any(divided) else len(divided)
        return NamedSharding(mesh, PartitionSpec(*[None] * first, *["shards"] * any(divided)))

    shardings = {name: sharding(leaf) for name, leaf in leaves.items()}
    tree = stam_jax.state_shardings(shardings, leaves, optimizer)
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in leaves.values())
    put = jax.lax.with_sharding_constraint if traced else jax.device_put
    return put(leaves, shardings), put(opt_state, tree)


class JaxRun:
    def __init__(self, opt, hparams, params, dtype, jit, place):
        self.again = (opt, hparams, params, dtype, jit, place)
        self.double = dtype == "float64"
        self.counted = RULES[opt].counted(hparams, params)
        own = RULES[opt].spelt("jax", hparams, params)
        # Hashable, as runs with equal settings share a program.
        own = {k: tuple(v.items()) if isinstance(v, Mapping) else v for k, v in own.items()}
        self.stepper = stepper(opt, tuple(sorted(own.items())), jit, place)
        with double_precision(self.double):
            leaves = own_arrays(params)
            self.start(leaves, self.stepper.make().init(leaves))

    def start(self, leaves, opt_state):
        self.leaves, self.opt_state = self.stepper.place(self.stepper.make(), leaves, opt_state)

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
        found = {key: SLOT.search(key) for key in flat}
        slots = {match[1]: np.array(flat[key]) for key, match in found.items() if match}
        if not self.counted:
            slots.pop("count", None)
        return slots

    def codes(self):
        flat = stam_jax.state_to_dict(self.opt_state)
        found = {key: CODED.search(key) for key in flat}
        return {
            match[1]: np.array(flat[key]).reshape(len(flat[key]), -1)
            for key, match in found.items()
            if match
        }

    def save(self):
        with double_precision(self.double):
            return pickle.dumps((self.params(), stam_jax.state_to_dict(self.opt_state)))

    def restore(self, blob):
        run = JaxRun(*self.again)
        params, state = pickle.loads(blob)
        with double_precision(self.double):
            opt_state = stam_jax.state_from_dict(run.opt_state, state)
            run.start({name: jnp.asarray(p) for name, p in params.items()}, opt_state)
        return run

    def compilations(self):
        return self.stepper.compiled


class JaxAdapter:
    framework = "jax"

    def __init__(self, name, *, jit, place=one_device):
        self.name, self.jit, self.place = name, jit, place
        shared = {"f64", "bf16", "f16", "complex", "digits", "resume", "lr", "corrected"}
        shared |= {
            "stat_sample",
            "parity",
            "mu_dtype",
            "codes",
            "propagate",
            "zero",
            "skip",
            "maximize",
        }
        self.capabilities = frozenset(shared | {"amsgrad"} | ({"jit"} if jit else set()))

    def optimizers(self):
        return frozenset(opt for opt in RULES if transformation(opt))

    def start(self, opt, hparams, params, *, dtype):
        return JaxRun(opt, hparams, params, dtype, self.jit, self.place)


class TestJit(OptimizerConformance):
    adapter = JaxAdapter("stam-jax under jit", jit=True)


# Eager arithmetic does not depend on the Python version, and dispatching it op by op takes minutes.
@pytest.mark.slow
class TestEager(OptimizerConformance):
    adapter = JaxAdapter("stam-jax, eager", jit=False)


# The number of devices is fixed when JAX starts, so the third mode has a process of its own.
if jax.device_count() == 8:

    class TestSharded(OptimizerConformance):
        adapter = JaxAdapter("stam-jax over eight devices", jit=True, place=eight_devices)

        def test_leaves_and_moments_stay_spread(self, opt):
            params = {"w": np.ones((4, 3), np.float32), "b": np.ones(3, np.float32)}
            needed = RULES[opt].for_leaves(params)
            run = self.adapter.start(opt, needed, params, dtype="float32")
            run.step(params)
            arrays = jax.tree_util.tree_leaves_with_path((run.leaves, run.opt_state))
            for path, array in arrays:
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                parts = {str(shard.index) for shard in array.addressable_shards}
                assert len(parts) == (4 if name.endswith("/w") else 1), name
                assert len(array.sharding.device_set) == 8, name
            assert len(arrays) > (3 if RULES[opt].slots else 1)

else:

    @pytest.mark.parametrize(
        ("chosen", "least"),
        [
            # What sharding cannot touch is left to the nightly run: refusals, and a second dtype.
            pytest.param("not float64 and not bad_hyper", 190, marks=pytest.mark.slow, id="main"),
            pytest.param("not nothing", 330, marks=pytest.mark.nightly, id="all"),
        ],
    )
    def test_eight_devices_pass_the_same_suite(chosen, least):
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        }
        options = ["-q", "-p", "no:cacheprovider", "-k", f"TestSharded and {chosen}"]
        result = subprocess.run(
            [sys.executable, "-m", "pytest", *options, __file__],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
        assert result.returncode == 0, result.stdout[-4000:]
        passed = re.search(r"(\d+) passed", result.stdout)
        assert passed is not None
        assert int(passed[1]) >= least, result.stdout[-300:]
