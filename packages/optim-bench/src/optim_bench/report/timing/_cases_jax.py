"""Optimizer steps in JAX: jitted, parameters and state donated, on given gradients."""

import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import stam_jax

from optim_bench.errors import BenchError
from optim_bench.report.timing._presets import Shape
from optim_bench.report.timing._rounds import Run

# Too small to change the parameters noticeably: a step costs the same at any rate.
RATE = 1e-6
LIMIT = 1.0


def _adamw_after_a_sum() -> optax.GradientTransformation:
    """AdamW that reads g and m once more before: the least that an exact STAM does."""

    def init(params: Any) -> Any:
        return [optax.adamw(RATE).init([p]) for p in params]

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        steps = []
        for g, leaf, p in zip(updates, state, params, strict=True):
            total = jnp.sum(jnp.abs(g - leaf[0].mu[0]))
            # Not a constant to the compiler, for which 0 times infinity is nan.
            steps.append(optax.adamw(RATE, b1=0.9 + 0 * total).update([g], leaf, [p]))
        return [u[0] for u, _ in steps], [new for _, new in steps]

    return optax.GradientTransformation(init, update)


CASES: Mapping[str, optax.GradientTransformation] = MappingProxyType(
    {
        "adamw": optax.adamw(RATE),
        "stam": stam_jax.stam(RATE),
        "stam sampled": stam_jax.stam(RATE, stat_sample=4096),
        "stam_lite": stam_jax.stam_lite(RATE),
        "stac": stam_jax.stac(RATE),
        "adamw after a sum": _adamw_after_a_sum(),
        "clip and adamw": optax.chain(optax.clip_by_global_norm(LIMIT), optax.adamw(RATE)),
        "clip and stam": optax.chain(optax.clip_by_global_norm(LIMIT), stam_jax.stam(RATE)),
        "clip and stam_lite": optax.chain(
            optax.clip_by_global_norm(LIMIT), stam_jax.stam_lite(RATE)
        ),
    }
)


def device_name(device: str) -> str | None:
    """Return what an accelerator calls itself, None for the CPU.

    Raises:
        BenchError: there is none.
    """
    if device == "cpu":
        return None
    try:
        return str(jax.devices(device)[0].device_kind)
    except RuntimeError:
        msg = "this preset needs a CUDA device, and JAX finds none on this machine"
        raise BenchError(msg) from None


class Tensors:
    """Parameters and gradients of a list of shapes; the gradients are shared by all cases."""

    def __init__(self, shapes: Sequence[Shape], device: str = "cpu", seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        values = [generator.standard_normal(shape, dtype=np.float32) for shape in shapes]
        (self.device, *_) = jax.devices(device)
        self.params = [0.02 * value for value in values]
        self.grads = [self._put(0.01 * value[::-1]) for value in values]

    def run(self, case: str) -> Run:
        """Return what takes n steps of a case and waits for the last one."""
        step = _jitted(CASES[case])
        params, state = self._start(case)

        def run(n: int) -> None:
            nonlocal params, state
            for _ in range(n):
                params, state = step(params, state, self.grads)
            jax.block_until_ready((params, state))

        return run

    def first_call(self, case: str) -> float:
        """Return the seconds of a first step, with tracing and compilation."""
        jax.clear_caches()
        params, state = jax.block_until_ready(self._start(case))
        step = _jitted(CASES[case])
        started = time.perf_counter()
        jax.block_until_ready(step(params, state, self.grads))
        return time.perf_counter() - started

    def _start(self, case: str) -> tuple[Any, Any]:
        # Copies, because a step is given them for good.
        params = [self._put(jnp.array(value, copy=True)) for value in self.params]
        return params, jax.device_put(CASES[case].init(params), self.device)

    def _put(self, value: Any) -> jax.Array:
        return jax.device_put(value, self.device)


def _jitted(transformation: optax.GradientTransformation) -> Any:
    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = transformation.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 1))
