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
from optim_bench.train._jax_rate import Follower, follow_rate
from optim_bench.train._same import SameFactory
from optim_bench.train._seeding import seeded
from optim_bench.train._session import CHUNK
from optim_bench.workloads import Array, Workload

# A traced program serves every seed: what an optimizer draws from NumPy while it is traced must not
# depend on the run that came first.
_TRACE_SEED = 0


class Program:
    """The compiled functions of one workload, one optimizer and one set of hyperparameters.

    Only the learning rate is traced: it changes every step. The others are Python numbers inside
    the program, as they would be in a user's script, because arithmetic such as 1 - b1 is done in
    double precision there.
    """

    def __init__(self, workload: Workload, info: OptimizerInfo, fixed: Mapping[str, Any]) -> None:
        model, loss = models.MODELS[workload.model], models.LOSSES[workload.loss]
        classes = workload.loss == "cross_entropy"
        factory = _Factory(info, fixed)
        average = None if info.evaluation is None else import_object(info.evaluation)

        def objective(params: Any, inputs: Any, targets: Any) -> jax.Array:
            return loss(model(params, inputs), targets)

        def start(params: Any, rate: Any) -> Any:
            with seeded(_TRACE_SEED):
                return factory(rate).init(params)

        def step(params: Any, state: Any, rate: Any, inputs: Any, targets: Any) -> Any:
            value, grads = jax.value_and_grad(objective)(params, inputs, targets)
            with seeded(_TRACE_SEED):
                state = self.follow(state, params, rate)
                updates, state = factory(rate).update(grads, state, params)
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
        self.info = info
        self.factory = factory
        self.init = jax.jit(start)
        self._follow: Follower | None = None
        self.step = jax.jit(step, donate_argnums=(0, 1))
        self.chunk = jax.jit(chunk, donate_argnums=(0, 1))
        self.judge = jax.jit(judge)

    def start(self, params: Any, rate: float) -> Any:
        """Return the state to begin with.

        Raises:
            TypeError: the factory cannot take a traced learning rate.
            ValueError: the state depends on the rate in a way that cannot follow a schedule.
        """
        if self._follow is None:
            self._follow = follow_rate(self.factory, self.init, params, rate, self.info.key)
        return self.init(params, np.float32(rate))

    def follow(self, state: Any, params: Any, rate: Any) -> Any:
        """Write the rate of this step into a state that holds one."""
        assert self._follow is not None  # noqa: S101 - a session starts before it steps
        return self._follow(state, params, rate)


class _Factory:
    """An optimizer's factory with everything fixed but the learning rate."""

    def __init__(self, info: OptimizerInfo, fixed: Mapping[str, Any]) -> None:
        self._call, self._fixed, self._key = info.load_factory(), fixed, info.key

    def __call__(self, rate: Any) -> Any:
        try:
            return self._call(learning_rate=rate, **self._fixed)
        except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError):
            msg = (
                f"{self._key}: the factory looks at the value of learning_rate, which is traced "
                "here because it changes every step; leave the check or conversion away"
            )
            raise TypeError(msg) from None


# A sweep in one process meets few programs at a time; older ones are dropped to free their memory.
_PROGRAMS: OrderedDict[Any, Program] = OrderedDict()
_KEPT = 16


def _program(workload: Workload, info: OptimizerInfo, fixed: Mapping[str, Any]) -> Program:
    # By their text: 1, 1.0 and True are equal, and programs of them need not be.
    values = tuple(sorted((name, repr(value)) for name, value in fixed.items()))
    factory = SameFactory(info.load_factory())
    key = (workload.name, workload.version, factory, info.evaluation, values)
    if key not in _PROGRAMS:
        while len(_PROGRAMS) >= _KEPT:
            _PROGRAMS.popitem(last=False)
        _PROGRAMS[key] = Program(workload, info, fixed)
    _PROGRAMS.move_to_end(key)
    return _PROGRAMS[key]


class JaxSession:
    """Parameters and optimizer state of one run in JAX."""

    def __init__(self, program: Program, initial: Mapping[str, Array], rate: float) -> None:
        self.program = program
        self.params = {name: jnp.asarray(value) for name, value in initial.items()}
        self.state = program.start(self.params, rate)

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
    seed: int,
) -> Iterator[JaxSession]:
    """Open a run; the learning rate comes with every step, the rest is fixed here."""
    fixed = {name: value for name, value in hyperparameters.items() if name != "learning_rate"}
    with jax.default_device(jax.devices(device)[0]), seeded(seed):
        yield JaxSession(_program(workload, info, fixed), initial, hyperparameters["learning_rate"])


def _pad(array: Array) -> Array:
    padded = np.zeros((CHUNK, *array.shape[1:]), array.dtype)
    padded[: len(array)] = array
    return padded
