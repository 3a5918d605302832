"""The models in JAX: functions of a flat dictionary of parameters in the layout of `torch.nn`."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from optim_bench.tasks._frameworks import MOST_PER_CALL, JaxTask
from optim_bench.tasks.built_in._shakespeare import HEADS, NORM_EPS
from optim_bench.tasks.built_in._synthetic import curvature
from optim_bench.tasks.built_in._workload import (
    Array,
    Arrays,
    Workload,
    batches,
    judged_in_slices,
)

Params = Mapping[str, jax.Array]


def dense(params: Params, name: str, x: jax.Array) -> jax.Array:
    """Apply x W^T + b."""
    return x @ params[f"{name}.weight"].T + params[f"{name}.bias"]


def convolve(params: Params, name: str, x: jax.Array, *, stride: int = 1) -> jax.Array:
    """Convolve channels-last images with padding 1, weights in torch's order."""
    y = lax.conv_general_dilated(
        x,
        params[f"{name}.weight"],
        window_strides=(stride, stride),
        padding=((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "OIHW", "NHWC"),
    )
    return y + params[f"{name}.bias"]


def mlp(params: Params, x: jax.Array) -> jax.Array:
    """Apply fc1, fc2, … with ReLU between them."""
    x = x.reshape(x.shape[0], -1)
    layers = sum(name.endswith(".weight") for name in params)
    for i in range(1, layers):
        x = jax.nn.relu(dense(params, f"fc{i}", x))
    return dense(params, f"fc{layers}", x)


def cnn(params: Params, x: jax.Array) -> jax.Array:
    """Apply two convolutions, the second with stride 2, and two dense layers.

    Images are (n, h, w) or channels-last.
    """
    x = x if x.ndim == 4 else x[..., None]
    x = jax.nn.relu(convolve(params, "conv1", x))
    x = jax.nn.relu(convolve(params, "conv2", x, stride=2))
    # Flattened in torch's order (channel, row, column), so that fc1 holds the same numbers in both
    # frameworks.
    x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)
    return dense(params, "fc2", jax.nn.relu(dense(params, "fc1", x)))


def rms_norm(x: jax.Array, weight: jax.Array) -> jax.Array:
    """Divide by the root mean square over the last axis and scale."""
    return x * lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + NORM_EPS) * weight


def attention(qkv: jax.Array) -> jax.Array:
    """Attend causally with `HEADS` heads; the last axis holds queries, keys and values."""
    batch, length, width = qkv.shape
    q, k, v = jnp.moveaxis(qkv.reshape(batch, length, 3, HEADS, -1), (2, 3), (0, 2))
    scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
    scores = jnp.where(jnp.tri(length, dtype=bool), scores, -jnp.inf)
    return (jax.nn.softmax(scores) @ v).swapaxes(1, 2).reshape(batch, length, width // 3)


def transformer(params: Params, tokens: jax.Array) -> jax.Array:
    """Apply a pre-norm transformer with learned positions to (n, length) token numbers."""
    x = params["token.weight"][tokens] + params["position.weight"][: tokens.shape[-1]]
    for i in range(sum(name.endswith(".qkv.weight") for name in params)):
        block = f"blocks.{i}"
        y = rms_norm(x, params[f"{block}.norm1.weight"])
        x = x + attention(y @ params[f"{block}.qkv.weight"].T) @ params[f"{block}.out.weight"].T
        y = rms_norm(x, params[f"{block}.norm2.weight"]) @ params[f"{block}.up.weight"].T
        x = x + jax.nn.gelu(y) @ params[f"{block}.down.weight"].T
    return rms_norm(x, params["norm.weight"]) @ params["head.weight"].T


def rosenbrock(params: Params, noise: jax.Array) -> jax.Array:
    """Return (1-x)^2 + 100 (y-x^2)^2 plus the linear noise, one value per row of noise."""
    x, y = params["point.weight"]
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2 + noise @ params["point.weight"]


def quadratic(params: Params, noise: jax.Array) -> jax.Array:
    """Return p^T H p / 2 plus the linear noise, one value per row of noise."""
    point = params["point.weight"]
    return point @ curvature() @ point / 2 + noise @ point


MODELS: Mapping[str, Callable[[Params, jax.Array], jax.Array]] = {
    "mlp": mlp,
    "cnn": cnn,
    "transformer": transformer,
    "rosenbrock": rosenbrock,
    "quadratic": quadratic,
}


def cross_entropy(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Return the mean negative log-likelihood of integer targets under logits."""
    logp = jax.nn.log_softmax(outputs)
    return -jnp.take_along_axis(logp, targets[..., None], axis=-1).mean()


def squared_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Return the mean squared error over all entries."""
    return jnp.square(outputs - targets).mean()


def objective(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Return the mean of outputs that are losses already; there are no targets."""
    return outputs.mean()


LOSSES: Mapping[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "cross_entropy": cross_entropy,
    "squared_error": squared_error,
    "objective": objective,
}


def hits(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Return the number of arg-max hits."""
    return (outputs.argmax(axis=-1) == targets).sum()


def task_of(workload: Workload, arrays: Arrays) -> JaxTask:
    """Return the task that trains a workload in JAX."""
    model, measure = MODELS[workload.model], LOSSES[workload.loss]
    classes = workload.loss == "cross_entropy"

    @jax.jit
    def judge(params: Params, inputs: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        outputs = model(params, inputs)
        count = hits(outputs, targets) if classes else jnp.zeros((), jnp.int32)
        return measure(outputs, targets), count

    def init(key: jax.Array, seed: int) -> dict[str, Array]:
        return arrays.initial(seed)

    def loss(params: Params, batch: Any, key: jax.Array) -> jax.Array:
        inputs, targets = batch
        return measure(model(params, inputs), targets)

    def evaluate(params: Params, split: str, seed: int, step: int) -> dict[str, float]:
        def judged(inputs: Array, targets: Array) -> tuple[float, float]:
            value, count = judge(params, inputs, targets)
            return float(value), int(count) / targets.size

        return judged_in_slices(judged, *arrays.evaluation(split, seed, step))

    return JaxTask(
        init,
        functools.partial(batches, arrays),
        loss,
        evaluate,
        steps_per_call=MOST_PER_CALL if workload.unrolled else 1,
        **workload.declared(),
    )
