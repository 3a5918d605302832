"""Factories of the JAX optimizers: keywords in, an optax transformation out."""

from typing import Any

import optax
import optax.contrib

Transformation = optax.GradientTransformation


def adamw(
    *, learning_rate: Any, b1: float, b2: float, eps: float, weight_decay: float
) -> Transformation:
    """AdamW as optax has it."""
    return optax.adamw(learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)


def adam(*, learning_rate: Any, b1: float, b2: float, eps: float) -> Transformation:
    """Adam as optax has it."""
    return optax.adam(learning_rate, b1=b1, b2=b2, eps=eps)


def nadam(*, learning_rate: Any, b1: float, b2: float, eps: float) -> Transformation:
    """NAdam as optax has it."""
    return optax.nadam(learning_rate, b1=b1, b2=b2, eps=eps)


def sgd(*, learning_rate: Any, momentum: float) -> Transformation:
    """Heavy-ball SGD."""
    return optax.sgd(learning_rate, momentum=momentum)


def rmsprop(*, learning_rate: Any, decay: float, eps: float) -> Transformation:
    """RMSProp as optax has it."""
    return optax.rmsprop(learning_rate, decay=decay, eps=eps)


def adagrad(*, learning_rate: Any, eps: float) -> Transformation:
    """Adagrad as optax has it."""
    return optax.adagrad(learning_rate, eps=eps)


def novograd(
    *, learning_rate: Any, b1: float, b2: float, eps: float, weight_decay: float
) -> Transformation:
    """NovoGrad as optax has it: one second moment per tensor."""
    return optax.novograd(learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)


def lamb(
    *, learning_rate: Any, b1: float, b2: float, eps: float, weight_decay: float
) -> Transformation:
    """LAMB as optax has it."""
    return optax.lamb(learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)


def lion(*, learning_rate: Any, b1: float, b2: float, weight_decay: float) -> Transformation:
    """Lion as optax has it."""
    return optax.lion(learning_rate, b1=b1, b2=b2, weight_decay=weight_decay)


def schedule_free_adamw(
    *,
    learning_rate: Any,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
    warmup_steps: int,
) -> Transformation:
    """Schedule-Free AdamW as optax has it, with its own linear warmup."""
    return optax.contrib.schedule_free_adamw(
        learning_rate,
        warmup_steps=warmup_steps,
        b1=b1,
        b2=b2,
        eps=eps,
        weight_decay=weight_decay,
    )


def schedule_free_parameters(state: Any, params: Any) -> Any:
    """Return the averaged parameters, which are the ones to judge."""
    return optax.contrib.schedule_free_eval_params(state, params)
