"""The models in JAX: functions of a flat dictionary of parameters in the layout of `torch.nn`."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import lax

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
    """Apply two convolutions, the second with stride 2, and two dense layers to images."""
    x = jax.nn.relu(convolve(params, "conv1", x[..., None]))
    x = jax.nn.relu(convolve(params, "conv2", x, stride=2))
    # Flattened in torch's order (channel, row, column), so that fc1 holds the same numbers in both
    # frameworks.
    x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)
    return dense(params, "fc2", jax.nn.relu(dense(params, "fc1", x)))


MODELS: Mapping[str, Callable[[Params, jax.Array], jax.Array]] = {"mlp": mlp, "cnn": cnn}


def cross_entropy(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Return the mean negative log-likelihood of integer targets under logits."""
    logp = jax.nn.log_softmax(outputs)
    return -jnp.take_along_axis(logp, targets[..., None], axis=-1).mean()


def squared_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Return the mean squared error over all entries."""
    return jnp.square(outputs - targets).mean()


LOSSES: Mapping[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "cross_entropy": cross_entropy,
    "squared_error": squared_error,
}


def hits(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Return the number of arg-max hits."""
    return (outputs.argmax(axis=-1) == targets).sum()
