"""Factories of the JAX optimizers: keywords in, an optax transformation out."""

from typing import Any

import optax


def adamw(
    *, learning_rate: Any, b1: float, b2: float, eps: float, weight_decay: float
) -> optax.GradientTransformation:
    """AdamW as optax has it."""
    return optax.adamw(learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)


def sgd(*, learning_rate: Any, momentum: float) -> optax.GradientTransformation:
    """Heavy-ball SGD."""
    return optax.sgd(learning_rate, momentum=momentum)
