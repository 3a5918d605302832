"""Every workload that needs no files, under the shared suite, in JAX and in PyTorch."""

import dataclasses
import pickle
from contextlib import ExitStack

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optim_bench.executors.train import open_session
from optim_bench.executors.train._schedule import multipliers
from optim_bench.optimizers import resolve
from optim_bench.tasks.built_in import WORKLOADS
from optim_bench.tasks.built_in._workload import EVALUATION_SLICE
from optim_conformance import Pair, WorkloadConformance

FRAMEWORKS = ("jax", "torch")
# A learning rate at which SGD moves the model well, without chaos; some of its steps; and what
# share of the first validation loss may be left then, which is well above what was measured.
PLAIN = {
    "digits-cnn": (0.05, 40, 0.15),
    "diamonds-mlp": (0.02, 40, 0.04),
    "shakespeare-char": (0.1, 20, 0.85),
    "patches-denoise": (0.1, 40, 0.55),
    "permuted-digits": (0.05, 40, 0.15),
    "digits-noisy": (0.02, 100, 0.75),
    "shifted-mlp": (0.02, 40, 0.75),
    "shifted-mlp-b8": (0.02, 80, 0.8),
    "shifted-mlp-b4": (0.02, 100, 0.85),
    "rosenbrock": (1e-4, 40, 0.18),
    "ill-conditioned-quadratic": (0.1, 40, 0.04),
}
OURS = dict.fromkeys(FRAMEWORKS, ("adamw", "stam", "stam_lite", "stac"))


class Training:
    """A session of the trainer, as the suite knows it."""

    def __init__(self, session, framework, arrays):
        self.session, self.framework, self.arrays = session, framework, arrays

    def advance(self, inputs, targets, rates):
        self.session.batches = zip(inputs, targets, strict=True)
        return self.session.advance(rates)

    def measured(self, inputs, targets):
        self.arrays.given = inputs, targets
        return self.session.evaluate("val", 1)

    def evaluate(self, inputs, targets):
        return self.measured(inputs, targets)["loss"]

    def params(self):
        if self.framework == "jax":
            return {name: np.array(leaf) for name, leaf in self.session.params.items()}
        state = self.session.module.state_dict()
        return {name: leaf.numpy().copy() for name, leaf in state.items()}

    def save(self):
        if self.framework == "jax":
            return pickle.dumps(jax.device_get((self.session.params, self.session.state)))
        modules = self.session.module, self.session.optimizer
        return pickle.dumps([module.state_dict() for module in modules])

    def restore(self, blob):
        saved = pickle.loads(blob)
        if self.framework == "jax":
            self.session.params, self.session.state = jax.tree.map(jnp.asarray, saved)
        else:
            self.session.module.load_state_dict(saved[0])
            self.session.optimizer.load_state_dict(saved[1])


class Given:
    """The arrays of a workload that is judged on what the suite gives."""

    def __init__(self, arrays):
        self.initial, self.chunks = arrays.initial, arrays.chunks

    def evaluation(self, split, seed, step):
        return self.given


class Benchmark:
    name = "optim-bench"
    plain = "sgd"
    rates = {name: rate for name, (rate, _, _) in PLAIN.items()}  # noqa: RUF012 - as the protocol
    frameworks = FRAMEWORKS
    steady = frozenset({"rosenbrock"})
    unsplit = frozenset({"rosenbrock", "ill-conditioned-quadratic"})
    schedules = ("constant", "cosine")
    pairs = (
        *(Pair(name, f, "sgd", *facts) for name, facts in PLAIN.items() for f in FRAMEWORKS),
        *(Pair("digits-noisy", f, opt, 3e-3, 100, 0.7) for f in FRAMEWORKS for opt in OURS[f]),
    )

    def __init__(self):
        self.opened = ExitStack()

    def initial(self, workload, seed):
        return WORKLOADS[workload].arrays(None).initial(seed)

    def batches(self, workload, seed, sizes):
        return WORKLOADS[workload].arrays(None).chunks(seed, sizes)

    def evaluation(self, workload, seed, split):
        sets = WORKLOADS[workload].arrays(None).evaluation(split, seed, 1)
        return tuple(array[:EVALUATION_SLICE] for array in sets)

    def multipliers(self, schedule, steps):
        return multipliers(schedule, steps)

    def start(self, pair, seed):
        info = resolve(pair.optimizer, pair.framework)
        workload = WORKLOADS[pair.workload]
        arrays = Given(workload.arrays(None))
        task = dataclasses.replace(workload, arrays=lambda data_dir: arrays)
        session = open_session(
            task.build(pair.framework, None),
            info,
            info.validate({"learning_rate": pair.learning_rate}),
            seed,
        )
        return Training(self.opened.enter_context(session), pair.framework, arrays)


BENCHMARK = Benchmark()


@pytest.fixture(autouse=True)
def close_sessions():
    """End what a check has started: a torch session holds the number of threads."""
    with BENCHMARK.opened:
        yield


@pytest.mark.slow
class TestWorkloads(WorkloadConformance):
    adapter = BENCHMARK


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in PLAIN if WORKLOADS[n].loss == "cross_entropy"])
def test_same_accuracy_before_the_first_step(name):
    judged = BENCHMARK.evaluation(name, 5, "val")
    runs = [BENCHMARK.start(Pair(name, f, "sgd", *PLAIN[name]), 5) for f in FRAMEWORKS]
    jax_share, torch_share = (run.measured(*judged)["accuracy"] for run in runs)
    assert jax_share == pytest.approx(torch_share, abs=1e-6)
    assert 0 < jax_share < 0.6


def test_every_workload_is_here():
    assert set(PLAIN) == {name for name, workload in WORKLOADS.items() if not workload.files}
