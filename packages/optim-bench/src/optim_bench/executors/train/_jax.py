"""Training in JAX: one program per task and optimizer, compiled once per process."""

import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optim_bench.executors.machine import driver
from optim_bench.executors.train._jax_layout import Layout
from optim_bench.executors.train._jax_rate import Follower, follow_rate
from optim_bench.executors.train._session import SameFactory, digest, seeded
from optim_bench.optimizers import FactoryError, OptimizerInfo, call_factory
from optim_bench.references import import_object
from optim_bench.tasks import JaxTask, TaskError, call_with, ran_out
from optim_bench.tasks.built_in import Array

# A traced program serves every seed: what an optimizer draws from NumPy while it is traced must not
# depend on the run that came first.
_TRACE_SEED = 0


class Program:
    """The compiled functions of one task, one optimizer and one set of hyperparameters.

    Only the learning rate is traced: it changes every step. The others are Python numbers inside
    the program, as they would be in a user's script, because arithmetic such as 1 - b1 is done in
    double precision there.
    """

    def __init__(
        self, task: JaxTask, info: OptimizerInfo, fixed: Mapping[str, Any], layout: Layout
    ) -> None:
        factory = _Factory(info, fixed)
        average = None if info.evaluation is None else import_object(info.evaluation)
        parts, merge = task.accumulate, layout.merge

        def objective(params: Any, held: Any, batch: Any, key: Any) -> jax.Array:
            return _scalar(task, task.loss(merge(params, held), batch, key))

        def gradients(params: Any, held: Any, batch: Any, key: Any) -> Any:
            if parts == 1:
                return jax.value_and_grad(objective)(params, held, batch, key)

            def add(total: Any, part: Any) -> Any:
                found = jax.value_and_grad(objective)(params, held, *part)
                return jax.tree.map(jnp.add, total, found), None

            zero = jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)
            total, _ = jax.lax.scan(add, zero, (batch, jax.random.split(key, parts)))
            return jax.tree.map(lambda value: value / parts, total)

        def start(params: Any, rate: Any) -> Any:
            with seeded(_TRACE_SEED):
                return factory(rate).init(params)

        def step(params: Any, state: Any, held: Any, rate: Any, batch: Any, key: Any) -> Any:
            value, grads = gradients(params, held, batch, key)
            if task.clip_norm is not None:
                squares = [jnp.sum(jnp.square(jnp.abs(g))) for g in jax.tree.leaves(grads)]
                scale = jnp.minimum(1.0, task.clip_norm / jnp.sqrt(sum(squares)))
                grads = jax.tree.map(lambda g: (g * scale).astype(g.dtype), grads)
            with seeded(_TRACE_SEED):
                state = self.follow(state, params, rate)
                updates, state = factory(rate).update(grads, state, params)
            return optax.apply_updates(params, updates), state, value

        def one(params: Any, state: Any, held: Any, rate: Any, batch: Any, key: Any, i: Any) -> Any:
            return step(params, state, held, rate, batch, jax.random.fold_in(key, i))

        def chunk(
            params: Any, state: Any, held: Any, rates: Any, batch: Any, n: Any, key: Any, first: Any
        ) -> Any:
            def body(i: Any, carry: Any) -> Any:
                params, state, losses = carry
                mine = jax.tree.map(lambda array: array[i], batch)
                fresh = jax.random.fold_in(key, first + i)
                params, state, value = step(params, state, held, rates[i], mine, fresh)
                return params, state, losses.at[i].set(value)

            return jax.lax.fori_loop(0, n, body, (params, state, jnp.zeros_like(rates)))

        self.info = info
        self.factory = factory
        self.init = jax.jit(start)
        self._follow: Follower | None = None
        self.step = jax.jit(one, donate_argnums=(0, 1))
        self.chunk = jax.jit(chunk, donate_argnums=(0, 1))
        self.average = None if average is None else jax.jit(average)

    def start(self, params: Any, rate: float) -> Any:
        """Return the state to begin with.

        Raises:
            FactoryError: the factory cannot take a traced learning rate, or returns something else.
            ValueError: the state depends on the rate in a way that cannot follow a schedule.
        """
        if self._follow is None:
            self._follow = follow_rate(self.factory, self.init, params, rate, self.info.key)
        return self.init(params, np.float32(rate))

    def follow(self, state: Any, params: Any, rate: Any) -> Any:
        """Write the rate of this step into a state that holds one."""
        assert self._follow is not None  # noqa: S101 - a session starts before it steps
        return self._follow(state, params, rate)


def _scalar(task: JaxTask, found: Any) -> jax.Array:
    loss: Any = found[0] if isinstance(found, tuple) and len(found) == 2 else found
    if jnp.shape(loss) != ():
        raise TaskError(
            f"{task.name}: loss returned an array of shape {jnp.shape(loss)}; reduce it, for "
            "example by .mean()"
        )
    return jnp.asarray(loss)


class _Factory:
    """An optimizer's factory with everything fixed but the learning rate."""

    def __init__(self, info: OptimizerInfo, fixed: Mapping[str, Any]) -> None:
        self._call, self._fixed, self._name = info.load_factory(), fixed, info.name

    def __call__(self, rate: Any) -> Any:
        try:
            settings = {"learning_rate": rate, **self._fixed}
            made = call_factory(self._name, "jax", self._call, settings)
        except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError):
            msg = (
                f"{self._name}: the factory looks at the value of learning_rate, which is traced "
                "here because it changes every step; leave the check or conversion away"
            )
            raise FactoryError(msg) from None
        if not (hasattr(made, "init") and hasattr(made, "update")):
            raise FactoryError(
                f"{self._name}: the factory returned a {type(made).__name__}; "
                "return an optax.GradientTransformation"
            )
        return made


# A sweep in one process meets few programs at a time; older ones are dropped to free their memory.
_PROGRAMS: OrderedDict[Any, Program] = OrderedDict()
_KEPT = 16


def _program(
    task: JaxTask, info: OptimizerInfo, fixed: Mapping[str, Any], layout: Layout
) -> Program:
    # By their text: 1, 1.0 and True are equal, and programs of them need not be.
    values = tuple(sorted((name, repr(value)) for name, value in fixed.items()))
    factory = SameFactory(info.load_factory())
    # The task itself, by identity: the key keeps it, so that no other one can get its id.
    key = (task, layout.key, factory, info.evaluation, values)
    if key not in _PROGRAMS:
        while len(_PROGRAMS) >= _KEPT:
            _PROGRAMS.popitem(last=False)
        _PROGRAMS[key] = Program(task, info, fixed, layout)
    _PROGRAMS.move_to_end(key)
    return _PROGRAMS[key]


class JaxSession:
    """Parameters and optimizer state of one run in JAX."""

    def __init__(
        self, task: JaxTask, program: Program, layout: Layout, rate: float, seed: int
    ) -> None:
        self.task, self.program, self.layout, self.seed = task, program, layout, seed
        self.params, self.held = layout.trained, layout.held
        self.key = jax.random.key(seed)
        self.batches = task.batch_stream(seed)
        self.steps = self.served = 0
        self.start = {"parameters": digest(jax.tree.leaves((self.params, _plain(self.held))))}
        self.state = program.start(self.params, rate)

    def advance(self, rates: Sequence[float]) -> Array:
        """Take one step per rate."""
        if self.task.steps_per_call == 1:
            values = []
            for rate in rates:
                self.params, self.state, value = self.program.step(
                    self.params,
                    self.state,
                    self.held,
                    np.float32(rate),
                    self._next(),
                    self.key,
                    self.steps,
                )
                values.append(value)
                self.steps += 1
            return np.asarray(jax.device_get(values))
        losses = []
        width = self.task.steps_per_call
        for first in range(0, len(rates), width):
            mine = np.asarray(rates[first : first + width], np.float32)
            steps = [self._next() for _ in mine]
            batch = jax.tree.map(lambda *parts: _pad(np.stack(parts), width), *steps)
            self.params, self.state, found = self.program.chunk(
                self.params,
                self.state,
                self.held,
                _pad(mine, width),
                batch,
                len(mine),
                self.key,
                self.steps,
            )
            losses.append(np.asarray(found)[: len(mine)])
            self.steps += len(mine)
        return np.concatenate(losses)

    def evaluate(self, split: str, step: int) -> dict[str, float]:
        """Return what the task measures on a split."""
        params, average = self.params, self.program.average
        if average is not None:
            params = average(self.state, params)
        whole = self.layout.merge(params, self.held)
        found = call_with(self.task.evaluate, whole, split, seed=self.seed, step=step)
        return self.task.measured(found, split)

    def parameter_sizes(self) -> list[tuple[int, int]]:
        """Return (entries, bytes) for each parameter."""
        return [(leaf.size, leaf.nbytes) for leaf in jax.tree.leaves(self.params)]

    def state_bytes(self) -> int:
        """Return the size of all arrays in the optimizer's state."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.state))

    def _next(self) -> Any:
        """Return the batches of one step, with an axis of their own where there are several."""
        parts = [self._draw() for _ in range(self.task.accumulate)]
        return parts[0] if len(parts) == 1 else jax.tree.map(lambda *p: np.stack(p), *parts)

    def _draw(self) -> Any:
        try:
            batch = next(self.batches)
        except StopIteration:
            raise ran_out(self.task, self.served) from None
        if self.served == 0:
            self.start["batch"] = digest(jax.tree.leaves(batch))
        self.served += 1
        return batch


@contextmanager
def session(
    task: JaxTask, info: OptimizerInfo, hyperparameters: Mapping[str, Any], seed: int, device: str
) -> Iterator[JaxSession]:
    """Open a run; the learning rate comes with every step, the rest is fixed here."""
    fixed = {name: value for name, value in hyperparameters.items() if name != "learning_rate"}
    kind, _, index = device.partition(":")
    with jax.default_device(jax.devices(kind)[int(index or 0)]), seeded(seed):
        layout = Layout(call_with(task.init, jax.random.key(seed), seed=seed))
        if not jax.tree.leaves(layout.trained):
            raise TaskError(f"{task.name}: init returned no array of floating point to train")
        program = _program(task, info, fixed, layout)
        yield JaxSession(task, program, layout, hyperparameters["learning_rate"], seed)


def try_factory(task: JaxTask, info: OptimizerInfo, settings: Mapping[str, Any]) -> None:
    """Make an optimizer and its state, without computing either."""
    fixed = {name: value for name, value in settings.items() if name != "learning_rate"}
    factory = _Factory(info, fixed)
    with seeded(0):
        layout = Layout(call_with(task.init, jax.random.key(0), seed=0))
        rate = np.float32(settings["learning_rate"])
        jax.eval_shape(lambda params, r: factory(r).init(params), layout.trained, rate)


def device_facts(device: str) -> dict[str, str]:
    """Return what decides numbers on an accelerator: which one, its driver, the flags."""
    kind, _, index = device.partition(":")
    return {
        "device": str(jax.devices(kind)[int(index or 0)].device_kind),
        "driver": driver(),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        "matmul precision": str(jax.config.jax_default_matmul_precision),
    }


def _plain(tree: Any) -> Any:
    """Return a tree whose random keys are arrays of numbers."""

    def number(leaf: Any) -> Any:
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(leaf) if is_key else leaf

    return jax.tree.map(number, tree)


def _pad(array: Array, width: int) -> Array:
    padded = np.zeros((width, *array.shape[1:]), array.dtype)
    padded[: len(array)] = array
    return padded
