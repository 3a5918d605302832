"""Training in JAX: one program per workload and optimizer, compiled once per process."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optim_bench.optimizers import OptimizerInfo
from optim_bench.optimizers._info import import_object
from optim_bench.train import _jax_models as models
from optim_bench.train._session import CHUNK
from optim_bench.workloads import Array, Workload


class Program:
    """The compiled functions of one workload, one optimizer and one set of hyperparameters.

    Only the learning rate is traced: it changes every step. The others are Python numbers inside
    the program, as they would be in a user's script, because arithmetic such as 1 - b1 is done in
    double precision there.
    """

    def __init__(self, workload: Workload, info: OptimizerInfo, fixed: Mapping[str, Any]) -> None:
        model, loss = models.MODELS[workload.model], models.LOSSES[workload.loss]
        classes = workload.loss == "cross_entropy"
        factory = info.load_factory()
        average = None if info.evaluation is None else import_object(info.evaluation)

        def objective(params: Any, inputs: Any, targets: Any) -> jax.Array:
            return loss(model(params, inputs), targets)

        def step(params: Any, state: Any, rate: Any, inputs: Any, targets: Any) -> Any:
            value, grads = jax.value_and_grad(objective)(params, inputs, targets)
            transformation = factory(learning_rate=rate, **fixed)
            updates, state = transformation.update(grads, state, params)
            return optax.apply_updates(params, updates), state, value

        def chunk(params: Any, state: Any, rates: Any, inputs: Any, targets: Any, n: Any) -> Any:
            def body(i: Any, carry: Any) -> Any:
                params, state, losses = carry
                params, state, value = step(params, state, rates[i], inputs[i], targets[i])
                return params, state, losses.at[i].set(value)

            return jax.lax.fori_loop(0, n, body, (params, state, jnp.zeros_like(rates)))

        def judge(params: Any, state: Any, inputs: Any, targets: Any) -> Any:
            if average is not None:
                params = average(state, params)
            outputs = model(params, inputs)
            hits = models.hits(outputs, targets) if classes else jnp.zeros((), jnp.int32)
            return loss(outputs, targets), hits

        self.unrolled = workload.unrolled
        # The rate is a placeholder here: no state depends on it.
        self.init = jax.jit(lambda params: factory(learning_rate=1.0, **fixed).init(params))
        self.step = jax.jit(step, donate_argnums=(0, 1))
        self.chunk = jax.jit(chunk, donate_argnums=(0, 1))
        self.judge = jax.jit(judge)


# A sweep in one process meets few programs at a time; older ones are dropped to free their memory.
_PROGRAMS: OrderedDict[Any, Program] = OrderedDict()
_KEPT = 16


def _program(workload: Workload, info: OptimizerInfo, fixed: Mapping[str, Any]) -> Program:
    key = (workload.name, workload.version, info.factory, tuple(sorted(fixed.items())))
    if key not in _PROGRAMS:
        while len(_PROGRAMS) >= _KEPT:
            _PROGRAMS.popitem(last=False)
        _PROGRAMS[key] = Program(workload, info, fixed)
    _PROGRAMS.move_to_end(key)
    return _PROGRAMS[key]


class JaxSession:
    """Parameters and optimizer state of one run in JAX."""

    def __init__(self, program: Program, initial: Mapping[str, Array]) -> None:
        self.program = program
        self.params = {name: jnp.asarray(value) for name, value in initial.items()}
        self.state = program.init(self.params)

    def advance(self, inputs: Array, targets: Array, rates: Sequence[float]) -> Array:
        """Take one step per rate."""
        if self.program.unrolled:
            n = len(rates)
            padded = [_pad(array) for array in (np.asarray(rates, np.float32), inputs, targets)]
            self.params, self.state, losses = self.program.chunk(
                self.params, self.state, *padded, n
            )
            return np.asarray(losses)[:n]
        values = []
        for i, rate in enumerate(rates):
            self.params, self.state, value = self.program.step(
                self.params, self.state, np.float32(rate), inputs[i], targets[i]
            )
            values.append(value)
        return np.asarray(jax.device_get(values))

    def evaluate(self, inputs: Array, targets: Array) -> tuple[float, float]:
        """Return mean loss and accuracy."""
        loss, hits = self.program.judge(self.params, self.state, inputs, targets)
        return float(loss), int(hits) / targets.size

    def parameter_sizes(self) -> list[tuple[int, int]]:
        """Return (entries, bytes) for each parameter."""
        return [(leaf.size, leaf.nbytes) for leaf in self.params.values()]

    def state_bytes(self) -> int:
        """Return the size of all arrays in the optimizer's state."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.state))


@contextmanager
def session(
    workload: Workload,
    info: OptimizerInfo,
    hyperparameters: Mapping[str, Any],
    initial: Mapping[str, Array],
    device: str,
) -> Iterator[JaxSession]:
    """Open a run; the learning rate comes with every step, the rest is fixed here."""
    fixed = {name: value for name, value in hyperparameters.items() if name != "learning_rate"}
    with jax.default_device(jax.devices(device)[0]):
        yield JaxSession(_program(workload, info, fixed), initial)


def _pad(array: Array) -> Array:
    padded = np.zeros((CHUNK, *array.shape[1:]), array.dtype)
    padded[: len(array)] = array
    return padded
